"""From the cache to tensors: a rank's micro-batches, read and decoded ahead in background threads.

Some threads wait for shards (`shard_tables.py`), one decodes, whatever the codec, and never on an accelerator. Of
compact-1's 3.1 microseconds a position (K = 64, one core) 2.4 are rANS, in which each word tells where the next one is
read, so an accelerator would take a sequence's ids one after another. The rest, which plain-1 and dense-1 have alone,
is not worth moving: log-probabilities are 0.15, and what crosses the bus is 12 bytes a kept id, 77 MB/s for a student
of 100 thousand positions a second. One core gives more than that (`benchmarks/stream.py`).

Of a rank's share of a batch, rows of like length are put into a micro-batch together: less is padded, and the gradient,
a sum over the whole batch, does not depend on it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.corpus.batch import by_length, collate
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import RequestError
from distributed_kd.store.disk_cache import DiskCache
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardIndex, shard_name
from distributed_kd.student.identity import SequenceDigests
from distributed_kd.student.order import GlobalOrder
from distributed_kd.student.position_targets import PositionTargets
from distributed_kd.student.position_weights import PositionWeights
from distributed_kd.student.shard_tables import ShardTables

_AHEAD = 2
_LOOK_SECONDS = 0.2
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class MicroBatch:
    input_ids: Tensor  # [B, S] int64
    position_ids: Tensor  # [B, S] int64
    present: Tensor  # [B, S] bool, False where a row is padded
    loss_mask: Tensor  # [B, S] bool
    targets: PositionTargets  # of the scored positions, row by row
    sequence_ids: tuple[int, ...]  # of the rows, and
    shards: tuple[int, ...]  # where the cache has them
    features: Tensor | None = None  # [B, S, F] float32, where positions are no tokens

    def to(self, device: torch.device) -> MicroBatch:
        names = ("input_ids", "position_ids", "present", "loss_mask", "features", "targets")
        own = {name: getattr(self, name) for name in names}
        return replace(self, **{name: part.to(device) for name, part in own.items() if part is not None})


def to_micro_batch(
    rows: list[Row], shards: list[int], temperature: float, weighting: PositionWeights | None = None
) -> MicroBatch:
    targets = SoftTargets.concatenate([row.targets for row in rows])
    sequences = [row.sequence for row in rows]
    log_p, log_p_tail = targets.log_probabilities(temperature)
    batch = micro_batch_of(sequences, targets.ids.astype(np.int64), log_p, log_p_tail, shards)
    if targets.hidden is not None:
        batch = replace(batch, targets=replace(batch.targets, hidden=_tensor_of(targets.hidden)))
    if weighting is None:
        return batch
    lengths = [sequence.positions for sequence in sequences]
    chosen = torch.from_numpy(weighting.chosen(log_p, log_p_tail, lengths, batch.targets.labels.numpy()))
    weights = weighting.weights(log_p)
    weighted = replace(batch.targets, weight=None if weights is None else torch.from_numpy(weights))
    loss_mask = batch.loss_mask.clone()
    loss_mask[batch.loss_mask] = chosen
    batch = replace(batch, loss_mask=loss_mask, targets=weighted.chosen(chosen))
    return _rows_that_teach(batch) if weighting.labels_alone else batch


def _tensor_of(hidden: np.ndarray) -> Tensor:
    """[N, D] as `cache/hidden.py` carries it."""
    tensor = torch.from_numpy(hidden)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def _rows_that_teach(batch: MicroBatch) -> MicroBatch:
    """Without the rows of which no position is chosen; with one where none is, since ranks call the model together."""
    teaches = batch.loss_mask.any(dim=1)
    rows = torch.nonzero(teaches).flatten() if teaches.any() else torch.zeros(1, dtype=torch.int64)
    if len(rows) == len(batch.loss_mask):
        return batch
    longest = int(batch.present[rows].sum(dim=1).max())
    names = ("input_ids", "position_ids", "present", "loss_mask", "features")
    own: dict[str, Any] = {name: part[rows, :longest] for name in names if (part := getattr(batch, name)) is not None}
    for name in ("sequence_ids", "shards"):
        own[name] = tuple(getattr(batch, name)[row] for row in rows.tolist())
    return replace(batch, **own)


def micro_batch_of(
    sequences: list[Sequence], ids: np.ndarray, log_p: np.ndarray, log_p_tail: np.ndarray, shards: list[int]
) -> MicroBatch:
    """ids, log_p [N, K] and log_p_tail [N] are of the sequences' N scored positions, row by row."""
    batch = collate(sequences)
    labels = batch.labels[batch.loss_mask]
    return MicroBatch(
        torch.from_numpy(batch.input_ids),
        torch.from_numpy(batch.position_ids),
        torch.from_numpy(batch.present),
        torch.from_numpy(batch.loss_mask),
        PositionTargets(*map(torch.from_numpy, (labels, ids, log_p, log_p_tail))),
        tuple(sequence.sequence_id for sequence in sequences),
        tuple(shards),
        None if batch.features is None else torch.from_numpy(batch.features),
    )


class TrainingRows(Protocol):
    """What is trained on: a cache, or sequences alone. A row is known by its place in the order of shards."""

    @property
    def store(self) -> Store: ...
    @property
    def entries(self) -> ShardIndex: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def inputs_sha256(self) -> str: ...
    @property
    def teacher(self) -> str: ...
    def __len__(self) -> int: ...
    def table(self, place: int, disk: DiskCache | None = None) -> pa.Table: ...
    def rows(self, place: int, table: pa.Table, indices: np.ndarray) -> list[Row]: ...
    def give_up(self) -> None: ...


class Batches:
    """For each step this rank's micro-batches, read ahead by a thread until `close`.

    An error of that thread is raised where its step is due. They end early where `is_asked_to_stop`, a wait included.
    """

    def __init__(self, stream: Stream, steps: range, is_asked_to_stop: Callable[[], bool]) -> None:
        self._stream, self._steps, self._is_asked_to_stop = stream, steps, is_asked_to_stop
        self._taken = 0
        self._ready: queue.Queue[list[MicroBatch] | BaseException] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="cache-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> list[MicroBatch]:
        if self._taken == len(self._steps):
            raise StopIteration
        item = None
        while item is None:
            if self._is_asked_to_stop():
                raise StopIteration
            with suppress(queue.Empty):
                item = self._ready.get(timeout=_LOOK_SECONDS)
        if isinstance(item, BaseException):
            raise item
        self._taken += 1
        return item

    def is_ready(self) -> bool:
        """Whether the next step's are there, so that nothing is waited for."""
        return not self._ready.empty()

    def close(self) -> None:
        self._closed.set()
        self._stream.cache.give_up()
        self._thread.join(_CLOSE_SECONDS)  # a store that does not answer holds up nobody who is to end

    def _read(self) -> None:
        try:
            with closing(self._stream.read(self._steps)) as found:
                for micro_batches in found:
                    self._put(micro_batches)
                    if self._closed.is_set():
                        return
        except BaseException as error:  # handed over to the consumer, whatever it is
            self._put(error)

    def _put(self, item: list[MicroBatch] | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue


class Stream:
    """For each optimizer step the list of this rank's micro-batches.

    weighting: which positions are trained on, and how much each counts; None: all alike.
    sequences: those that the cache must be of; without them a row is held to its id alone.
    disk: where shards are kept for this rank's next epoch and for the other ranks of the host.
    """

    def __init__(
        self, cache: TrainingRows, order: GlobalOrder, *, rank: int, world: int, micro_batch: int, temperature: float,
        weighting: PositionWeights | None = None, sequences: SequenceDigests | None = None,
        disk: DiskCache | None = None,
    ) -> None:  # fmt: skip
        self.cache, self.order = cache, order
        self.rank, self.world = rank, world
        self.micro_batch, self.temperature = micro_batch, temperature
        self.weighting, self.sequences, self.disk = weighting, sequences, disk

    def steps(self, first_step: int, end_step: int, is_asked_to_stop: Callable[[], bool] = lambda: False) -> Batches:
        return Batches(self, range(first_step, end_step), is_asked_to_stop)

    def read(self, steps: range) -> Generator[list[MicroBatch]]:
        """What `steps` reads, in the thread that asks."""
        with closing(ShardTables(self._fetch, self.cache.entries.bytes)) as tables:
            yield from self._steps(steps, tables)

    def _steps(self, steps: range, tables: ShardTables) -> Iterator[list[MicroBatch]]:
        spans = list(enumerate(self.order.spans(steps)))
        planned = [self._plan(span, own, tables) for span, own in spans[:1]]
        for place in range(len(spans)):
            # The next epoch's shards are read ahead while this one's last batches are taken.
            planned += [self._plan(span, own, tables) for span, own in spans[place + 1 : place + 2]]
            numbers, places = planned.pop(0)
            for own, where in zip(numbers, places, strict=True):
                yield self._micro_batches(place, own, where, tables)

    def _plan(self, span: int, steps: range, tables: ShardTables) -> tuple[np.ndarray, np.ndarray]:
        """[steps, sequences of this rank] each: their indices, and the places of their shards."""
        numbers = np.stack([self.order.rank_batch(step, self.rank, self.world) for step in steps])
        places = self.cache.entries.places_of(numbers)
        tables.plan(span, places.ravel())
        return numbers, places

    def _fetch(self, place: int) -> pa.Table:
        table = self.cache.table(place, self.disk)
        if self.sequences is not None:
            self.sequences.load(self.cache.entries[place].shard)
        return table

    def _micro_batches(
        self, span: int, numbers: np.ndarray, places: np.ndarray, tables: ShardTables
    ) -> list[MicroBatch]:
        rows: list[Any] = [None] * len(numbers)
        shards = self.cache.entries.shard[places].tolist()
        for place in dict.fromkeys(places.tolist()):  # in the order of first use, as they were planned
            own = np.flatnonzero(places == place)
            table = tables.take(span, place, len(own))
            for at, row in zip(own.tolist(), self.cache.rows(place, table, numbers[own]), strict=True):
                self._check(row, int(numbers[at]), shards[at])
                rows[at] = row
        # Of tweets, 16 of 64 at a time, a third is padding otherwise.
        order = by_length([row.sequence for row in rows]) if len(rows) > self.micro_batch else range(len(rows))
        parts = [order[at : at + self.micro_batch] for at in range(0, len(rows), self.micro_batch)]
        return [
            to_micro_batch([rows[at] for at in part], [shards[at] for at in part], self.temperature, self.weighting)
            for part in parts
        ]

    def _check(self, row: Row, number: int, shard: int) -> None:
        """Raises `RequestError` where the cache is of other sequences, which its digests need not tell."""
        found = row.sequence.sequence_id
        if found != number or (self.sequences is not None and not self.sequences.has(row.sequence, shard)):
            said = f"sequence {found}" if found != number else "other tokens or documents"
            raise RequestError(
                f"{self.cache.store.uri}/{shard_name(shard)} has {said} in the place of sequence {number}: it is of "
                "other sequences than are trained on; delete the cache's folder and run `dkd cache` again"
            )
