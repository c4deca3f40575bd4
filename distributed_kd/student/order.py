"""The one global order of training: which sequences are in which batch, and in what order.

A pure function of (cache fingerprint, seed, epoch) and of the shards' sizes and the batch's: neither the number of
ranks nor of threads nor the micro-batch enters it. Epochs follow each other without a gap, so a batch may end one and
begin the next, and the state of a run is the number of its next batch.

An epoch draws an order of shards and cuts their sequences, end to end, into `lanes` as long as each other. A lane goes
through its part window by window, `_SHUFFLED / lanes` sequences or a little more in each, in an order drawn for the
window; a window is of whole shards. The lanes lie side by side: a batch takes as many sequences of each, one lane
after the other. So a batch comes from as many places of the corpus as there are lanes, while a shard is needed for one
window and then no more; and a rank, whose slice of a batch is a run of lanes, reads a run of the shards. Which rows of
its slice share a micro-batch goes by their length (`stream.py`), which the sum over them does not depend on.
`benchmarks/shuffle.py` measures how well this shuffles.

Lanes are no more than `_MOST_LANES`, since each holds a shard or two in memory, and are not by the number of ranks,
which would change the order. Of more ranks several are on one lane and read the same shards, each its own rows of them:
with a batch of 128, 64 ranks read each shard twice and 128 ranks four times, from the disk cache of their host where
they share one. Fewer shards than ranks are for the same reason no error: ranks divide rows, not shards.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np

from distributed_kd.store.digest import fingerprint

_MOST_LANES = 32
_SHUFFLED = 8192  # sequences from which the next ones are drawn, all lanes together


class GlobalOrder:
    """`batch` sequences of a cache in an optimizer step. `rows` [shards]: how many each of the cache's shards has."""

    def __init__(self, cache_fingerprint: str, seed: int, rows: np.ndarray, batch: int) -> None:
        self._key = {"cache": cache_fingerprint, "seed": seed}
        self._rows = np.asarray(rows, np.int64)
        self.sequences = int(self._rows.sum())
        self.batch_sequences = batch
        self.lanes = max(lanes for lanes in range(1, _MOST_LANES + 1) if batch % lanes == 0)
        self._epoch = lru_cache(2)(self.epoch)  # 8 bytes a sequence each

    def batch(self, number: int) -> np.ndarray:
        """[batch] int64: the sequence indices of global batch `number`, in order."""
        places = np.arange(number * self.batch_sequences, (number + 1) * self.batch_sequences)
        epochs, offsets = np.divmod(places, self.sequences)
        return np.concatenate([self._epoch(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)])

    def rank_batch(self, number: int, rank: int, world: int) -> np.ndarray:
        """[batch / world] int64: the slice of batch `number` that a rank trains on; slices in rank order make it up."""
        share = self.batch_sequences // world
        return self.batch(number)[rank * share : (rank + 1) * share]

    def spans(self, steps: range) -> list[range]:
        """The steps by the epoch that they begin in."""
        epochs = np.arange(steps.start, steps.stop) * self.batch_sequences // max(1, self.sequences)
        cuts = [steps.start, *(np.flatnonzero(np.diff(epochs)) + steps.start + 1).tolist(), steps.stop]
        return [range(begin, end) for begin, end in pairwise(cuts) if begin < end]

    def first_uses(self) -> np.ndarray:
        """[shards] int64: in the order in which the first epoch needs them; last those without rows."""
        used = np.searchsorted(np.cumsum(self._rows), self._epoch(0), "right")
        shards, first = np.unique(used, return_index=True)
        return np.concatenate([shards[np.argsort(first)], np.flatnonzero(self._rows == 0)])

    def shards(self, epoch: int) -> np.ndarray:
        """[shards] int64: the order that an epoch's lanes are cut from."""
        return np.argsort(self._random(epoch, "shards", len(self._rows)), kind="stable")

    def epoch(self, epoch: int) -> np.ndarray:
        """[sequences] int64: an epoch's sequences in their order."""
        shards = self.shards(epoch)
        rows = self._rows[shards]
        begins = np.cumsum(rows) - rows  # of each shard, in their order end to end
        sequences = np.repeat((np.cumsum(self._rows) - self._rows)[shards] - begins, rows) + np.arange(self.sequences)

        lengths = self.sequences // self.lanes + (np.arange(self.lanes) < self.sequences % self.lanes)
        lane = np.repeat(np.arange(self.lanes), lengths)
        first = np.repeat(np.cumsum(lengths) - lengths, lengths)
        # The window that a shard begins in is that of all its sequences.
        size = max(1, _SHUFFLED // self.lanes)
        window = (np.maximum(np.repeat(begins, rows), first) - first) // size
        windows = np.cumsum(np.diff(lane * (self.sequences + 1) + window, prepend=0) != 0)
        drawn = self._random(epoch, "sequences", self.sequences) >> np.uint64(32)
        sequences = sequences[np.argsort((windows.astype(np.uint64) << np.uint64(32)) | drawn, kind="stable")]

        taken = self.batch_sequences // self.lanes  # of a lane at once
        within = np.arange(self.sequences) - first
        places = (within // taken) * self.batch_sequences + lane * taken + within % taken
        by_lane = np.full(int(places.max(initial=-1)) + 1, -1, np.int64)
        by_lane[places] = sequences
        return by_lane[by_lane >= 0]  # lanes differ by a sequence in length

    def _random(self, epoch: int, what: str, count: int) -> np.ndarray:
        """[count] uint64. Raw Philox output, whose stream is fixed for good where numpy's own shuffles may change."""
        key = int(fingerprint({**self._key, "epoch": epoch, "of": what})[:32], 16)
        return np.random.Philox(key=key).random_raw(count)
