"""SIGKILL of all ranks at a random step, under each ZeRO stage: the weights are those of a run never disturbed."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.kills import killed_rounds

pytestmark = pytest.mark.slow

SEED = random.SystemRandom().randrange(2**32)


# Each start takes seconds: one round here; five in the long tests, as in `benchmarks/kills.py`, or DKD_ROUNDS.
@pytest.mark.parametrize("rounds", [1, pytest.param(int(os.environ.get("DKD_ROUNDS", "5")), marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "float32"), (1, "float32"), (2, "float32"), (2, "bfloat16"), (3, "float32")]
)
def test_a_killed_training_ends_with_the_undisturbed_weights(
    prepared_recipe: dict[str, Any], tmp_path: Path, stage: int, precision: str, rounds: int
) -> None:
    print(f"seed {SEED}")
    told = killed_rounds(prepared_recipe, stage, rounds, SEED, tmp_path / "runs", precision=precision)
    print(*told, sep="\n")
    assert all(round_["killed_after"] >= round_["drawn"] for round_ in told)
