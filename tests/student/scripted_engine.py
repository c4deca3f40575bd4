"""For tests of the loop: an engine whose losses and gradient norms are told beforehand, and batches for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch

from distributed_kd.recipe import Objective
from distributed_kd.student.objective import Loss
from distributed_kd.student.position_targets import PositionTargets
from distributed_kd.student.stream import MicroBatch


class ScriptedEngine:
    """Each micro-batch's divergence is that of its step; counts what its optimizer took, keeps what it was given."""

    device = torch.device("cpu")

    def __init__(self, losses: list[float], norms: dict[int, float], first: int = 0) -> None:
        self.losses, self.norms, self.global_steps = losses, norms, first
        self.module = SimpleNamespace(objective=Objective(alpha=1.0), last_loss=None)
        self.scales: list[float] = []
        self.drawn: list[float] = []  # what dropout would draw in each step

    def __call__(self, batch: MicroBatch, scale: float) -> torch.Tensor:
        value = torch.tensor(self.losses[self.global_steps])
        self.module.last_loss = Loss(value, torch.tensor(math.nan), value, value, torch.tensor(math.nan))
        self.scales.append(scale)
        self.drawn.append(float(torch.rand(1)))
        return value * scale

    def backward(self, loss: torch.Tensor) -> None:
        return

    def step(self) -> None:
        self.global_steps += 1

    def get_lr(self) -> list[float]:
        return [1e-3]

    def get_global_grad_norm(self) -> float:
        return self.norms.get(self.global_steps - 1, 1.0)


def one_position(step: int) -> MicroBatch:
    """A sequence of one position, numbered as the step is, in shard 7."""
    one, yes = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    targets = PositionTargets(one[0], one, torch.zeros(1, 1), torch.zeros(1))
    return MicroBatch(one, one, yes, yes, targets, (step,), (7,))


class Batches:
    """One micro-batch of one position a step."""

    def steps(self, first: int, end: int, is_asked_to_stop: Callable[[], bool]) -> Iterator[list[MicroBatch]]:
        for step in range(first, end):
            yield [one_position(step)]
