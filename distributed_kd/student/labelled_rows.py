"""Training sequences without a cache: for a student of hard labels alone, which has no teacher.

What the stream asks of a cache, asked of the sequences artifact: its rows have labels, and targets that keep nothing.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.store.disk_cache import DiskCache
from distributed_kd.store.index import ShardIndex


class LabelledRows:
    """The training split. A sequence is known by its number, which is its place in the order of shards."""

    def __init__(self, sequences: Sequences, temperature: float) -> None:
        self._sequences = sequences
        self._temperature = temperature
        self.store = sequences.store
        self.entries: ShardIndex = sequences.shards("train")

    def __len__(self) -> int:
        return int(self.entries.ends[-1])

    @property
    def fingerprint(self) -> str:
        return self._sequences.manifest.fingerprint

    @property
    def inputs_sha256(self) -> str:
        return self._sequences.manifest.tokenizer.sha256

    @property
    def teacher(self) -> str:
        return "none"

    def table(self, place: int, disk: DiskCache | None = None) -> pa.Table:
        return self._sequences.table(self.entries.shard[place], disk)

    def rows(self, place: int, table: pa.Table, indices: np.ndarray) -> list[Row]:
        own = table.take(pa.array(indices - int(self.entries.ends[place])))
        sequences = self._sequences.rows(int(self.entries.shard[place]), own)
        return [Row(sequence, self._nothing(sequence.positions)) for sequence in sequences]

    def give_up(self) -> None:
        """Nobody waits for a shard of finished sequences."""

    def _nothing(self, positions: int) -> SoftTargets:
        """All mass is in the tail."""
        return SoftTargets(
            ids=np.empty((positions, 0), np.int32),
            logits=np.empty((positions, 0), np.float32),
            tail_odds=np.full((positions, 1), np.inf, np.float32),
            temperatures=(self._temperature,),
            log_p=np.empty((positions, 1, 0), np.float32),
        )
