"""What the demo's report must say. Reads the report that `make demo` left; without one there is nothing to check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.recipe import load
from tests.commands import ROOT

REPORT = ROOT / "runs" / "demo" / "report"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    if not (REPORT / "report.json").exists():
        pytest.skip("no demo report; run `make demo` first")
    return json.loads((REPORT / "report.json").read_text())


def test_the_report_is_of_the_recipe_as_it_stands(report: dict[str, Any]) -> None:
    assert report["recipe"] == load(ROOT / "recipes" / "demo.yaml").model_dump(mode="json")


@pytest.mark.parametrize(("figure", "better"), [("cross_entropy", -1), ("kl_from_teacher", -1), ("agreement", +1)])
def test_the_student_beats_hard_labels_alone_clear_of_zero(report: dict[str, Any], figure: str, better: int) -> None:
    low, high = sorted(better * edge for edge in report["differences"][figure]["interval"])
    assert 0.0 < low <= high


def test_every_field_is_there(report: dict[str, Any]) -> None:
    for name in ("teacher", "student", "baseline"):
        assert {
            "cross_entropy", "perplexity", "kl_from_teacher", "agreement", "ece", "parameters", "positions_per_second",
        } <= report["models"][name].keys()  # fmt: skip
    assert {"prepare", "cache", "train", "evaluate"} == report["stages"].keys()
    assert {"retention", "cache", "recipe", "fingerprints"} <= report.keys()


def test_student_and_baseline_differ_in_the_objective_alone() -> None:
    """Same initial weights, data, order, steps: the baseline's own recipe keys are its learning rate."""
    recipe = load(Path(ROOT / "recipes" / "demo.yaml"))
    assert recipe.baseline is not None
    assert recipe.baseline.model_dump(exclude_none=True).keys() == {"learning_rate"}


def test_the_page_is_one_file(report: dict[str, Any]) -> None:
    page = (REPORT / "report.html").read_text()
    assert "<html" in page
    for reference in ('src="http', 'href="http', "url(http"):
        assert reference not in page
