"""A spike, or a gradient that is not finite, ends a training with its sequences named, and is not checkpointed."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from distributed_kd.errors import WorkError
from distributed_kd.recipe import Trainer
from distributed_kd.student import loop
from tests.student.scripted_engine import Batches, ScriptedEngine

pytestmark = pytest.mark.usefixtures("one_rank")

LOSSES = [2.0, 1.9, 2.1, 2.0, 1.8, 2.2, 2.0, 1.9, 2.1, 2.0]


def trained(
    losses: list[float], norms: dict[int, float] | None = None, **said: Any
) -> tuple[ScriptedEngine, list[dict[str, Any]], list[int], WorkError | None]:
    """(the engine, metrics, steps that were checkpointed, what ended it)."""
    saved: list[int] = []
    checkpoints = SimpleNamespace(save=lambda engine, done, metrics: saved.append(done))
    engine, metrics = ScriptedEngine(losses, norms or {}), []
    trainer = Trainer(steps=len(losses), global_batch=1, checkpoint_every=1, **said)
    try:
        loop.train(engine, Batches(), trainer, range(len(losses)), metrics, checkpoints, lambda _: None)  # type: ignore[arg-type]
    except WorkError as error:
        return engine, metrics, saved, error
    return engine, metrics, saved, None


def test_a_spike_stops_before_the_optimizer_and_names_its_sequences() -> None:
    engine, metrics, saved, error = trained([*LOSSES, 4.5, 2.0], spike_factor=2.0)
    assert "the loss is 4.5, a spike above 4 at step 10, from sequences 10 (shard 7); the weights did not" in str(error)
    assert engine.global_steps == len(metrics) == 10
    assert saved[-1] == 10


@pytest.mark.parametrize(
    ("losses", "factor"), [([*LOSSES, 3.9, 2.0], 2.0), ([*LOSSES, 9.0, 2.0], None), ([2.0] * 9 + [9.0, 2.0], 2.0)]
)
def test_no_spike_below_the_factor_or_without_one_or_before_there_is_a_median(
    losses: list[float], factor: float | None
) -> None:
    assert trained(losses, spike_factor=factor)[3] is None


def test_a_spike_is_measured_by_the_last_steps_alone() -> None:
    assert trained([20.0] * 60 + [2.0] * 50 + [4.5, 2.0], spike_factor=2.0)[3] is not None


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_not_checkpointed(norm: float) -> None:
    _, metrics, saved, error = trained([2.0] * 5, {3: norm})
    assert f"the gradient's norm is {norm} at step 3, from sequences 3 (shard 7); the weights took it" in str(error)
    assert saved == [1, 2, 3] and len(metrics) == 3


def test_float16_skips_such_a_step_by_itself() -> None:
    assert trained([2.0] * 5, {3: math.inf}, precision="float16")[3] is None
