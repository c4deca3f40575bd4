"""The training loop of a rank.

The loss is a sum over positions divided by the positions of the *global* batch (by their weights, where they have any),
so the same batch gives the same gradient however it is split over ranks and micro-batches; positions without a label
are divided by as well. DeepSpeed averages over
ranks and accumulation steps; each micro-batch's sum is therefore scaled by world * accumulation / positions.

A loss that is not finite, or is a spike, stops all ranks before the optimizer sees it, with the sequences that gave it:
the weights, and the last checkpoint, are what they were. A gradient that is not finite is known when the optimizer has
seen it: then no checkpoint is written after it. float16's loss scaling skips such a step by itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NoReturn

import torch

from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import Stopped, WorkError
from distributed_kd.launch.stop import before_the_first_step
from distributed_kd.recipe import Objective, Trainer
from distributed_kd.store.filesystem import Store
from distributed_kd.store.manifest import peak_memory_bytes
from distributed_kd.student.checkpoint import Checkpoints
from distributed_kd.student.flops import Work
from distributed_kd.student.held_out import held_out_loss
from distributed_kd.student.stream import MicroBatch, Stream

_NAMED = 8  # sequences in an error's line
_REFUSED = "refused.json"  # all of them
_RECENT = 50  # steps whose median loss a spike is measured by
_FEWEST = 10
# For an upload before the last checkpoint and for its own, of the 30 that a training has which is asked to stop.
_UPLOAD_SECONDS = 5.0


def train(
    engine: Any,
    stream: Stream,
    trainer: Trainer,
    steps: range,
    metrics: list[dict[str, Any]],
    checkpoints: Checkpoints,
    report: Callable[[list[dict[str, Any]]], None],
    is_asked_to_stop: Callable[[], bool] = lambda: False,
    held_out: list[Sequence] | None = None,
    work: Work | None = None,
    meet: Callable[[str], None] | None = None,
    store: Store | None = None,
) -> None:
    """Takes the optimizer steps of `steps`, adding one mapping to `metrics` for each.

    `data_wait` is the share of a step's time in which the rank that waited longest waited for the cache. Raises
    `Stopped` on all ranks, with a checkpoint, before the step at which any of them is asked to stop, also while it
    waits for its batch: `is_asked_to_stop` is true on all ranks soon after it is on one. held_out: what
    `trainer.evaluate_every` looks at, None where it looks at nothing. work: what `flop_utilisation` counts with;
    without it a line has none. meet: returns once all ranks call it with that name, after however long; needed where
    `trainer.follow`, since a rank may wait for a shard longer than a collective waits for a rank. store: the student's.
    """
    saved = steps.start
    with closing(stream.steps(steps.start, steps.stop, is_asked_to_stop)) as batches:
        for step in steps:
            _seed(trainer.seed, step)
            begun = time.monotonic()
            some_wait = meet is not None and _over_ranks([float(not batches.is_ready())], engine.device)[0] > 0.0
            micro_batches = next(batches, None)
            if meet is not None and some_wait:
                meet(f"step {step}")
            is_last = micro_batches is None or is_asked_to_stop()
            waited, some_stop = _over_ranks(
                [time.monotonic() - begun, float(is_last)], engine.device, torch.distributed.ReduceOp.MAX
            )
            if some_stop or micro_batches is None:
                _stop(engine, step, steps.start, saved, metrics, checkpoints)
            line = take_step(engine, micro_batches, _ceiling(trainer, metrics), store)
            if not math.isfinite(line["gradient_norm"]) and trainer.precision != "float16":
                _refuse(step, f"the gradient's norm is {line['gradient_norm']}", micro_batches, "took it", store)
            done = step + 1
            whole = waited + line["seconds"]
            rate = line["positions"] / whole
            metrics.append({"step": step, **line, "positions_per_second": rate, "data_wait": waited / whole})
            if work is not None:
                own = line["tokens"] / torch.distributed.get_world_size()
                metrics[-1]["flop_utilisation"] = work.utilisation(own, whole)
            if held_out and done % trainer.evaluate_every == 0:
                metrics[-1]["held_out_loss"] = held_out_loss(engine, held_out)
            report(metrics)
            if trainer.checkpoint_every and done % trainer.checkpoint_every == 0 and done < steps.stop:
                checkpoints.save(engine, done, metrics)
                saved = done


def _stop(
    engine: Any, done: int, first: int, saved: int, metrics: list[dict[str, Any]], checkpoints: Checkpoints
) -> NoReturn:
    if done == first:
        raise before_the_first_step()
    if done > saved:
        checkpoints.save(engine, done, metrics, _UPLOAD_SECONDS)
    checkpoints.wait(_UPLOAD_SECONDS)
    raise Stopped(f"stopped after step {done - 1}, which is saved; the same command goes on from there")


def _seed(seed: int, step: int) -> None:
    """Dropout then draws what it would have drawn in a training that was never stopped, on each rank something else."""
    key = f"{seed} {step} {torch.distributed.get_rank()}".encode()
    drawn = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
    # `torch.manual_seed` asks every kind of device that there might be, which a small step feels.
    torch.default_generator.manual_seed(drawn)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(drawn)


def _ceiling(trainer: Trainer, metrics: list[dict[str, Any]]) -> float:
    """The loss above which a step is a spike; infinity while there is nothing to measure it by."""
    recent = [line["loss"] for line in metrics[-_RECENT:]]
    if trainer.spike_factor is None or len(recent) < _FEWEST:
        return math.inf
    return trainer.spike_factor * statistics.median(recent)


def take_step(
    engine: Any, micro_batches: list[MicroBatch], ceiling: float = math.inf, store: Store | None = None
) -> dict[str, float]:
    """One optimizer step over this rank's micro-batches, and its metrics over the global batch.

    Raises `WorkError` on all ranks, before the optimizer, where the loss is not finite or above the ceiling. store: for
    the sequences of such a step that its line has no room for.
    """
    begun = time.monotonic()
    own = [
        (float(len(one.targets)), one.targets.total_weight, one.targets.labelled_weight, float(one.present.sum()))
        for one in micro_batches
    ]
    positions, weight, labelled, tokens = _over_ranks([sum(values) for values in zip(*own, strict=True)], engine.device)
    weight = weight or 1.0  # nothing to learn from: the loss is zero
    learning_rate = engine.get_lr()[0]
    scale = torch.distributed.get_world_size() * len(micro_batches) / weight
    found: list[list[float]] = []  # of each micro-batch: cross-entropy, divergence, tail, cosine
    for place, batch in enumerate(micro_batches, start=1):
        loss = engine(batch.to(engine.device), scale)
        engine.backward(loss)
        found.append(torch.stack(engine.module.last_loss[1:]).tolist())
        if place == len(micro_batches):
            totals = _over_ranks([sum(values) for values in zip(*found, strict=True)], engine.device)
            cross_entropy, divergence, tail, cosine = (total / weight for total in totals)
            loss_value = _loss_of(engine.module.objective, cross_entropy, divergence, cosine)
            if not math.isfinite(loss_value):
                losses = [_loss_of(engine.module.objective, sums[0], sums[1], sums[3]) for sums in found]
                bad = [batch for batch, loss in zip(micro_batches, losses, strict=True) if not math.isfinite(loss)]
                _refuse(engine.global_steps, f"the loss is {loss_value}", bad, "did not take it", store)
            if loss_value > ceiling:
                reason = f"the loss is {loss_value:.4g}, a spike above {ceiling:.4g}"
                _refuse(engine.global_steps, reason, micro_batches, "did not take it", store)
        engine.step()
    of_labelled = totals[0] / (labelled or 1.0)
    parts = {"divergence": divergence, "cross_entropy": of_labelled, "tail_share": tail, "cosine": cosine}
    return {
        "loss": loss_value,
        **{name: value for name, value in parts.items() if _is_read(engine.module.objective, name)},
        "positions": positions,
        "tokens": tokens,
        "learning_rate": learning_rate,
        "gradient_norm": float(engine.get_global_grad_norm() or 0.0),
        "memory_peak_bytes": _memory_peak(engine.device),
        "seconds": time.monotonic() - begun,
    }


def _is_read(objective: Objective, part: str) -> bool:
    if part == "cosine":
        return objective.cosine > 0.0
    return objective.alpha < 1.0 if part == "cross_entropy" else objective.alpha > 0.0


def _loss_of(objective: Objective, cross_entropy: float, divergence: float, cosine: float) -> float:
    """What is not read is nan, and counts for nothing."""
    soft = objective.alpha * objective.temperature**2 * divergence if _is_read(objective, "divergence") else 0.0
    hard = (1.0 - objective.alpha) * cross_entropy if _is_read(objective, "cross_entropy") else 0.0
    return soft + hard + (objective.cosine * cosine if _is_read(objective, "cosine") else 0.0)


def _refuse(
    step: int, reason: str, micro_batches: list[MicroBatch], weights: str, store: Store | None = None
) -> NoReturn:
    """All ranks call it, each with those of its micro-batches that are to be named. Raises `WorkError`.

    What the line has no room for is in `refused.json` of the store.
    """
    own = [pair for batch in micro_batches for pair in zip(batch.sequence_ids, batch.shards, strict=True)]
    of_ranks: list[list[tuple[int, int]]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(of_ranks, own)
    bad = [pair for pairs in of_ranks for pair in pairs]
    named = ", ".join(f"{number} (shard {shard})" for number, shard in bad[:_NAMED])
    if len(bad) > _NAMED:
        named += f" and {len(bad) - _NAMED} more"
        if store is not None:
            named += f", all of them in {store.uri}/{_REFUSED}"
            if torch.distributed.get_rank() == 0:
                listed = [{"sequence": number, "shard": shard} for number, shard in bad]
                store.put(_REFUSED, json.dumps({"step": step, "reason": reason, "sequences": listed}).encode())
            torch.distributed.barrier()  # before any of them ends the others
    raise WorkError(
        f"{reason} at step {step}, from sequences {named}; the weights {weights}: lower trainer.learning_rate or look "
        "at these sequences; the same command goes on from the last checkpoint"
    )


def _memory_peak(device: torch.device) -> int:
    """This rank's: of the GPU's memory where it has one, else of its own."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()


def _over_ranks(values: list[float], device: torch.device, kind: Any = torch.distributed.ReduceOp.SUM) -> list[float]:
    if torch.distributed.get_world_size() == 1:
        return values  # a collective of one is still a wait for another thread, which small steps feel
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total, kind)
    return total.tolist()
