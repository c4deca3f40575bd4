"""The classics' recipes, shortened: the direction of each result, not its size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import ROOT, dkd

pytestmark = pytest.mark.slow


def test_soft_targets_of_heavy_views_beat_labels_of_which_many_are_wrong(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, which carries the digits, is not installed")
    short = ["trainer.steps=300", "corpus.views=4"]
    teacher = f"{{recipe: recipes/digits-teacher.yaml, overrides: [{', '.join(short)}, workdir={tmp_path}/teacher]}}"
    done = dkd(
        "run", "recipes/augmented-digits.yaml", f"workdir={tmp_path}/work", "corpus.label_noise=0.4", *short,
        f"teachers=[{teacher}]", "trainer.processes=1", "--json", cwd=ROOT, DKD_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["models"]["teacher"]["accuracy"] > 0.85
    for figure, sign in (("accuracy", 1), ("ece", -1), ("kl_from_teacher", -1)):
        low, high = sorted(sign * edge for edge in report["differences"][figure]["interval"])
        assert low > 0, (figure, low, high)
