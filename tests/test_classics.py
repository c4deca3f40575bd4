"""The classics' recipes, shortened: the direction of each result, not its size.

Long ones: `test_classification.py` holds the same on toys, among the tests that always run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import ROOT, dkd

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_soft_targets_of_heavy_views_beat_labels_of_which_many_are_wrong(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, which carries the digits, is not installed")
    short = ["trainer.steps=300", "trainer.global_batch=64", "trainer.micro_batch=64", "corpus.views=4"]
    teacher = f"{{recipe: recipes/digits-teacher.yaml, overrides: [{', '.join(short)}, workdir={tmp_path}/teacher]}}"
    done = dkd(
        "run", "recipes/augmented-digits.yaml", f"workdir={tmp_path}/work", "corpus.label_noise=0.4", *short,
        f"teachers=[{teacher}]", "trainer.processes=1", "--json", cwd=ROOT, DKD_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["models"]["teacher"]["accuracy"] > 0.85
    for figure, sign in (("accuracy", 1), ("cross_entropy", -1), ("kl_from_teacher", -1)):
        low, high = sorted(sign * edge for edge in report["differences"][figure]["interval"])
        assert low > 0, (figure, low, high)


@pytest.mark.long
def test_an_ensembles_student_beats_labels_on_real_speech(tmp_path: Path) -> None:
    for module in ("pocketsphinx", "G722"):
        pytest.importorskip(module, reason=f"{module}, which the built-in speech needs, is not installed")
    members = ", ".join(
        f"{{recipe: recipes/acoustic-member.yaml, overrides: [trainer.seed={seed}, trainer.steps=200, "
        f"workdir={tmp_path}/member-{seed}]}}"
        for seed in (1, 2, 3)
    )
    done = dkd(
        "run", "recipes/hinton-ensemble.yaml", f"workdir={tmp_path}/work", "trainer.steps=200", f"teachers=[{members}]",
        "trainer.processes=1", "--json", cwd=ROOT,
    )  # fmt: skip
    if "could not fetch them" in done.stderr:
        pytest.skip("Debian's packages of speech cannot be fetched here")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    models = report["models"]
    assert models["ensemble"]["accuracy"] > models["teacher"]["accuracy"] > 0.4
    assert report["differences"]["cross_entropy"]["interval"][1] < 0
    assert len(report["members"]) == 3 and report["transferred_share"] is not None
