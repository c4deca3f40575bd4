"""The training loop of a rank.

The loss is a sum over positions divided by the positions of the *global* batch, so the same batch gives the same
gradient however it is split over ranks and micro-batches. DeepSpeed averages over ranks and accumulation steps;
each micro-batch's sum is therefore scaled by world * accumulation / positions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distributed_kd.errors import WorkError
from distributed_kd.recipe import Trainer
from distributed_kd.student import checkpoint
from distributed_kd.student.stream import MicroBatch, Stream


def train(
    engine: Any,
    stream: Stream,
    trainer: Trainer,
    steps: range,
    metrics: list[dict[str, Any]],
    checkpoints: Path,
    report: Callable[[list[dict[str, Any]]], None],
) -> None:
    """Takes the optimizer steps of `steps`, adding one mapping to `metrics` for each."""
    for step, micro_batches in zip(steps, stream.steps(steps.start, steps.stop), strict=True):
        metrics.append({"step": step, **take_step(engine, micro_batches)})
        report(metrics)
        done = step + 1
        if trainer.checkpoint_every and done % trainer.checkpoint_every == 0 and done < steps.stop:
            checkpoint.save(engine, checkpoints, done, metrics, trainer.keep_checkpoints)


def take_step(engine: Any, micro_batches: list[MicroBatch]) -> dict[str, float]:
    """One optimizer step over this rank's micro-batches, and its metrics over the global batch."""
    begun = time.monotonic()
    positions = _sum_over_ranks([float(sum(len(batch.targets) for batch in micro_batches))], engine.device)[0]
    learning_rate = engine.get_lr()[0]
    scale = torch.distributed.get_world_size() * len(micro_batches) / max(1.0, positions)
    sums = [0.0, 0.0]
    for batch in micro_batches:
        loss = engine(batch.to(engine.device), scale)
        engine.backward(loss)
        engine.step()
        parts = engine.module.last_loss
        sums = [sums[0] + parts.cross_entropy.item(), sums[1] + parts.divergence.item()]
    cross_entropy, divergence = (value / max(1.0, positions) for value in _sum_over_ranks(sums, engine.device))
    objective = engine.module.objective
    loss_value = objective.alpha * objective.temperature**2 * divergence
    if objective.alpha < 1.0:
        loss_value += (1.0 - objective.alpha) * cross_entropy
    if not torch.isfinite(torch.tensor(loss_value)):
        raise WorkError(f"the loss is {loss_value} at step {engine.global_steps}; lower trainer.learning_rate")
    metrics = {
        "loss": loss_value,
        "divergence": divergence,
        "positions": positions,
        "learning_rate": learning_rate,
        "gradient_norm": float(engine.get_global_grad_norm() or 0.0),
        "seconds": time.monotonic() - begun,
    }
    return metrics if objective.alpha == 1.0 else {**metrics, "cross_entropy": cross_entropy}


def _sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()
