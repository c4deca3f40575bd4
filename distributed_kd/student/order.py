"""The one global order of training: which sequences are in which batch, and in what order.

A pure function of (cache fingerprint, seed, epoch): neither the number of ranks nor of loader threads nor the
micro-batch enters it. Epochs follow each other without a gap, so a batch may end one and begin the next, and the
state of a run is the number of its next batch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from distributed_kd.store.digest import fingerprint


class GlobalOrder:
    """`sequences` of a cache, `batch` of them in an optimizer step."""

    def __init__(self, cache_fingerprint: str, seed: int, sequences: int, batch: int) -> None:
        self._key = {"cache": cache_fingerprint, "seed": seed}
        self.sequences = sequences
        self.batch_sequences = batch
        self._epoch = lru_cache(2)(self._permutation)

    def batch(self, number: int) -> np.ndarray:
        """[batch] int64: the sequence indices of global batch `number`, in order."""
        places = np.arange(number * self.batch_sequences, (number + 1) * self.batch_sequences)
        epochs, offsets = np.divmod(places, self.sequences)
        return np.concatenate([self._epoch(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)])

    def rank_batch(self, number: int, rank: int, world: int) -> np.ndarray:
        """[batch / world] int64: the slice of batch `number` that a rank trains on; slices in rank order make it up."""
        share = self.batch_sequences // world
        return self.batch(number)[rank * share : (rank + 1) * share]

    def _permutation(self, epoch: int) -> np.ndarray:
        # Sorting raw Philox output: its stream is fixed for good, where numpy's own shuffles may change.
        key = int(fingerprint({**self._key, "epoch": epoch})[:32], 16)
        return np.argsort(np.random.Philox(key=key).random_raw(self.sequences), kind="stable")
