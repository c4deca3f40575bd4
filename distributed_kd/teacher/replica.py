"""One copy of the teacher, as a Ray actor: a shard number in, a receipt out; the logits go from here to the store.

A replica is given `SHARDS` shards at a time, and the accelerator takes one of them at a time: while it has the next
one, the last one is encoded and written. A store that is slow therefore slows the teacher, and what a replica holds
in memory is two shards, whatever happens.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from distributed_kd.cache.manifest import CacheManifest, Receipt, put_tables, read_tables, store_of
from distributed_kd.cache.shard import Row, build_tables
from distributed_kd.cache.writer import put_rows
from distributed_kd.corpus.sequences import Sequence, Sequences
from distributed_kd.errors import RequestError, WorkError
from distributed_kd.recipe import Recipe
from distributed_kd.store.digest import sha256
from distributed_kd.store.index import IndexReference
from distributed_kd.store.manifest import peak_memory_bytes
from distributed_kd.teacher.computed import Computed

if TYPE_CHECKING:
    from distributed_kd.teacher.forward import TeacherForward

SHARDS = 2  # in a replica at a time: one in the teacher, one being encoded and written

_ENCODERS_OF_A_GPU = 4  # threads

# Code tables are made from at least so many shards, where there are as many, so that the sample is no one corner.
_TABLE_SHARDS = 16


class Replica:
    """`capture` is called `SHARDS` times at once, in the group "shards"; `progress` is answered in "watch"."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.store = store_of(recipe)
        self.tables: bytes | None = None
        self.spec = recipe.teachers[0]
        # One thread for all that touches the accelerator: in order, and with one setting of torch.
        self.accelerator = ThreadPoolExecutor(1, thread_name_prefix="accelerator")

    @cached_property
    def sequences(self) -> Sequences:
        return Sequences.of(self.recipe)

    @cached_property
    def teacher(self) -> TeacherForward:
        import torch

        from distributed_kd.teacher.forward import TeacherForward

        torch.set_num_threads(self.recipe.capture.threads)
        return TeacherForward(self.spec, self.recipe.targets, self.recipe.capture)

    # What can hang is done in these two and not in `__init__`, so that `progress` answers meanwhile.

    def computes_in(self) -> Computed:
        return Computed.here(self.spec)

    def load(self, computed: Computed | None = None) -> None:
        """Loads the teacher, to compute in the dtype of the cache's other shards. Raises `RequestError` for one that
        does not fit."""
        if computed is not None:
            self.spec = self.spec.model_copy(update={"dtype": computed.dtype})
        assert self.sequences
        assert self.accelerator.submit(lambda: self.teacher).result()

    def progress(self) -> int:
        """A number that changes while there is progress.

        Positions that the teacher has gone through since it was loaded; before, MiB (below 0) that this process holds,
        has read and has written: a teacher that is on its way from a disk or a network moves one of them.
        """
        loaded = self.__dict__.get("teacher")  # a cached property: asked for, it would be loaded here as well
        return -_mebibytes_moved() if loaded is None else loaded.positions

    def make_tables(self, train_shards: list[int] | range, known: IndexReference | None) -> IndexReference:
        """Writes the code tables of the recipe's codec, made from a sample of the training sequences.

        Raises `WorkError`, and writes nothing, when they are not the `known` ones that shards were written with.
        """
        codec, draws = self.recipe.capture.codec, self.recipe.targets.draws or 0
        rows = self._rows(self._sample(train_shards, self.recipe.capture.table_positions))
        try:
            data = build_tables(rows, codec, self.teacher.vocabulary_size, draws)
        except ValueError as error:
            raise RequestError(f"no code tables of {codec} for these targets: {error}") from error
        if known is not None and (len(data), sha256(data)) != (known.bytes, known.sha256):
            raise WorkError(
                f"the code tables made here are not those that {self.store.uri} was written with (another device or "
                "version of torch?); repair it where it was captured, or delete it to capture it again"
            )
        return put_tables(self.store, data)

    def _sample(self, train_shards: list[int] | range, positions: int) -> list[Sequence]:
        """Sequences of about so many positions in all: whole shards spread evenly, then every so-manyth sequence."""
        total = self.sequences.manifest.splits["train"].positions
        wanted = min(positions, total)
        count = min(len(train_shards), max(1, -(-wanted * len(train_shards) // total), _TABLE_SHARDS))
        places = np.linspace(0, len(train_shards) - 1, count).round().astype(int)
        read = [sequence for place in places for sequence in self.sequences.read(train_shards[place])]
        step = max(1, sum(sequence.positions for sequence in read) // wanted)
        return without(read[::step], self.recipe.capture.leave_out)

    def capture(self, shard: int, manifest: CacheManifest) -> Receipt:
        """One shard: read, run, encode, write, then the receipt."""
        if self.tables is None:
            self.tables = read_tables(self.store, manifest.tables)
        # A finished cache, which is repaired, says itself what it has left out.
        left_out = self.recipe.capture.leave_out if manifest.index is None else manifest.left_out or []
        sequences = self.sequences.read(shard)
        own = sorted({sequence.sequence_id for sequence in sequences} & set(left_out))
        rows = self._rows(without(sequences, own))
        return put_rows(self.store, manifest, shard, rows, self.tables, threads=self._encoders, left_out=own)

    @property
    def _encoders(self) -> int:
        """A GPU is faster than one core encodes, and leaves its host's others idle."""
        return max(self.recipe.capture.threads, _ENCODERS_OF_A_GPU if self.teacher.is_on_gpu else 1)

    def _rows(self, sequences: list[Sequence]) -> list[Row]:
        """With the targets that the teacher gives them, when the accelerator has time for it."""
        targets = self.accelerator.submit(lambda: self.teacher(sequences)).result()
        return [Row(sequence, own) for sequence, own in zip(sequences, targets, strict=True)]

    def peak_memory_bytes(self) -> int:
        return peak_memory_bytes()


def without(sequences: list[Sequence], left_out: Iterable[int]) -> list[Sequence]:
    """Those that are left out stay as rows without positions."""
    ids = set(left_out)
    return [one.without_loss() if one.sequence_id in ids else one for one in sequences]


def _mebibytes_moved() -> int:
    """Of memory this process holds, and of bytes that it has read and written."""
    with open("/proc/self/statm") as held, open("/proc/self/io") as moved:
        pages = int(held.read().split()[1])
        read_and_written = [int(line.split()[1]) for line in moved][:2]  # "rchar: ...", "wchar: ..."
    return (pages * os.sysconf("SC_PAGE_SIZE") + sum(read_and_written)) >> 20
