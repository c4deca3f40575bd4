"""From the cache to tensors: a rank's micro-batches, read and decoded ahead in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distributed_kd.cache.reader import LogitCache
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.corpus.batch import collate
from distributed_kd.errors import RequestError
from distributed_kd.store.index import shard_name
from distributed_kd.student.identity import SequenceDigests
from distributed_kd.student.objective import PositionTargets
from distributed_kd.student.order import GlobalOrder

_AHEAD = 2


@dataclass(frozen=True)
class MicroBatch:
    input_ids: Tensor  # [B, S] int64
    position_ids: Tensor  # [B, S] int64
    loss_mask: Tensor  # [B, S] bool
    targets: PositionTargets  # of the scored positions, row by row
    sequence_ids: tuple[int, ...]  # of the rows, and
    shards: tuple[int, ...]  # where the cache has them

    def to(self, device: torch.device) -> MicroBatch:
        targets = PositionTargets(
            self.targets.labels.to(device),
            self.targets.ids.to(device),
            self.targets.log_p.to(device),
            self.targets.log_p_tail.to(device),
        )
        inputs = (self.input_ids.to(device), self.position_ids.to(device), self.loss_mask.to(device))
        return MicroBatch(*inputs, targets, self.sequence_ids, self.shards)


def to_micro_batch(rows: list[Row], shards: list[int], temperature: float) -> MicroBatch:
    batch = collate([row.sequence for row in rows])
    targets = SoftTargets.concatenate([row.targets for row in rows])
    log_p, log_p_tail = targets.log_probabilities(temperature)
    return MicroBatch(
        torch.from_numpy(batch.input_ids),
        torch.from_numpy(batch.position_ids),
        torch.from_numpy(batch.loss_mask),
        PositionTargets(
            torch.from_numpy(batch.labels[batch.loss_mask]),
            torch.from_numpy(targets.ids.astype(np.int64)),
            torch.from_numpy(log_p),
            torch.from_numpy(log_p_tail),
        ),
        tuple(row.sequence.sequence_id for row in rows),
        tuple(shards),
    )


class Stream:
    """Yields, for each optimizer step from `first_step` on, the list of this rank's micro-batches.

    sequences: those that the cache must be of; without them a row is held to its id alone.
    """

    def __init__(
        self, cache: LogitCache, order: GlobalOrder, *, rank: int, world: int, micro_batch: int, temperature: float,
        sequences: SequenceDigests | None = None,
    ) -> None:  # fmt: skip
        self.cache, self.order = cache, order
        self.rank, self.world = rank, world
        self.micro_batch, self.temperature = micro_batch, temperature
        self.sequences = sequences

    def steps(self, first_step: int, end_step: int) -> Generator[list[MicroBatch]]:
        """An error of the reading thread is raised here, where its step is due."""
        ready: queue.Queue[list[MicroBatch] | BaseException] = queue.Queue(_AHEAD)
        stopped = threading.Event()

        def put(item: list[MicroBatch] | BaseException) -> None:
            while not stopped.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return
                except queue.Full:
                    continue

        def read() -> None:
            try:
                for step in range(first_step, end_step):
                    if stopped.is_set():
                        return
                    put(self._step(step))
            except BaseException as error:  # handed over to the consumer, whatever it is
                put(error)

        thread = threading.Thread(target=read, name="cache-reader", daemon=True)
        thread.start()
        try:
            for _ in range(first_step, end_step):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()

    def _step(self, step: int) -> list[MicroBatch]:
        numbers = [int(index) for index in self.order.rank_batch(step, self.rank, self.world)]
        shards = [self.cache.shard_of(number) for number in numbers]
        rows = [self._row(number, shard) for number, shard in zip(numbers, shards, strict=True)]
        return [
            to_micro_batch(rows[at : at + self.micro_batch], shards[at : at + self.micro_batch], self.temperature)
            for at in range(0, len(rows), self.micro_batch)
        ]

    def _row(self, number: int, shard: int) -> Row:
        """Raises `RequestError` where the cache is of other sequences, which its digests need not tell."""
        row = self.cache[number]
        found = row.sequence.sequence_id
        if found != number or (self.sequences is not None and not self.sequences.has(row.sequence, shard)):
            said = f"sequence {found}" if found != number else "other tokens or documents"
            raise RequestError(
                f"{self.cache.store.uri}/{shard_name(shard)} has {said} in the place of sequence {number}: it is of "
                "other sequences than are trained on; delete the cache's folder and run `dkd cache` again"
            )
        return row
