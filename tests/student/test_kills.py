"""SIGKILL of all ranks at a random step, under each ZeRO stage: the weights are those of a run never disturbed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.kills import killed_rounds

pytestmark = pytest.mark.slow

SEED = random.SystemRandom().randrange(2**32)


# Each start takes seconds: one round here, and five in `benchmarks/kills.py`.
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_killed_training_ends_with_the_undisturbed_weights(
    prepared_recipe: dict[str, Any], tmp_path: Path, stage: int
) -> None:
    print(f"seed {SEED}")
    told = killed_rounds(prepared_recipe, stage, 1, SEED, tmp_path / "runs")
    print(*told, sep="\n")
    assert all(round_["killed_after"] >= round_["drawn"] for round_ in told)
