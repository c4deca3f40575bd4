"""The student on development documents while it is trained: cross-entropy on their own labels, no teacher needed.

The cache has targets of training sequences alone, so this is what a plain language model is judged by. Ranks share the
sequences, and each calls the engine equally often, since under ZeRO-3 a call gathers weights from all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from distributed_kd.corpus.sequences import Sequence, Sequences
from distributed_kd.errors import RequestError
from distributed_kd.student.stream import MicroBatch, micro_batch_of

SPLIT = "development"


def held_out_sequences(sequences: Sequences, count: int) -> list[Sequence]:
    """The first so many of the development split. Raises `RequestError` where there are none."""
    found: list[Sequence] = []
    for entry in sequences.shards(SPLIT):
        found += sequences.read(entry.shard)
        if len(found) >= count:
            break
    if not found:
        raise RequestError(
            "trainer.evaluate_every needs development sequences, and there are none; set corpus.development_fraction, "
            "or evaluate_every=0"
        )
    return found[:count]


def held_out_loss(engine: Any, sequences: list[Sequence]) -> float:
    """Mean cross-entropy of their scored positions, in nats; the same for any number of ranks but for rounding."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    total = torch.zeros(2, dtype=torch.float64, device=engine.device)
    engine.eval()
    with torch.no_grad():
        for begin in range(0, len(sequences), world):
            # Beyond the end a rank takes the last one again, which then counts for nothing.
            own = min(begin + rank, len(sequences) - 1)
            batch = _batch(sequences[own])
            engine(batch.to(engine.device), 1.0, labels_alone=True)
            if own == begin + rank:
                total += torch.tensor([engine.module.last_loss.cross_entropy.item(), float(len(batch.targets))])
    engine.train()
    torch.distributed.all_reduce(total)
    return float(total[0] / total[1])


def _batch(sequence: Sequence) -> MicroBatch:
    """Its targets keep nothing: only the labels are read."""
    positions = sequence.positions
    nothing = np.empty((positions, 0), np.float32)
    return micro_batch_of([sequence], nothing.astype(np.int64), nothing, np.zeros(positions, np.float32), [-1])
