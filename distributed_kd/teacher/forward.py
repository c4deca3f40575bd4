"""The teacher as capture and audit use it: sequences in, soft targets of their scored positions out."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from itertools import pairwise

import numpy as np
import torch

from distributed_kd.cache.hidden import are_finite
from distributed_kd.cache.soft_targets import NO_ID, SoftTargets
from distributed_kd.corpus.batch import by_length, by_tokens, collate
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import RequestError, WorkError
from distributed_kd.recipe import Capture, Targets, Teacher
from distributed_kd.teacher.host_copy import HostCopy
from distributed_kd.teacher.network import Network, Outputs
from distributed_kd.teacher.peers import Peers
from distributed_kd.teacher.targets import choose, numbers_of

_MOST_NAMED = 12  # sequences in an error's line


class TeacherForward:
    """Loads the teacher, on `devices_per_replica` devices. Raises `RequestError` when it does not fit."""

    def __init__(self, teacher: Teacher, targets: Targets, capture: Capture) -> None:
        self.targets = targets
        self.capture = capture
        self.positions = 0  # whose targets have arrived on the host, ever
        self._peers = Peers(teacher, capture) if teacher.devices_per_replica > 1 else None
        layer = None if targets.hidden is None else targets.hidden.layer
        self._network = Network(teacher, capture, layer=layer)
        self.vocabulary_size = self._network.vocabulary_size
        if targets.keeps(self.vocabulary_size) > self.vocabulary_size:
            raise RequestError(f"targets.k {targets.k} is more than the teacher's {self.vocabulary_size} ids")

    @property
    def is_on_gpu(self) -> bool:
        return self._network.device.type == "cuda"

    @torch.inference_mode()
    def __call__(self, sequences: list[Sequence]) -> list[SoftTargets]:
        """The targets of each sequence's scored positions, [positions, K] each.

        Raises `WorkError` naming the sequences for which the teacher gave NaN or infinity.
        """
        copy = HostCopy(self._network.device)
        order = by_length(sequences)
        for group in by_tokens([sequences[place] for place in order], self.capture.batch_tokens):
            numbers = numbers_of(self.targets, group)
            begin = 0
            with closing(self.outputs(group)) as chunks:
                for logits, hidden in chunks:
                    end = begin + len(logits)
                    copy.add(choose(logits, self.targets, None if numbers is None else numbers[begin:end], hidden))
                    begin = end
                    del logits  # else it is there while the next chunk's are computed
            copy.end_batch()
            self.positions += begin
        flat = copy.wait()
        ends = np.cumsum([0] + [sequences[place].positions for place in order])
        found = {place: flat[begin:end] for place, (begin, end) in zip(order, pairwise(ends), strict=True)}
        rows = [found[place] for place in range(len(sequences))]
        _refuse_not_finite(sequences, rows)
        return rows

    def outputs(self, group: list[Sequence]) -> Generator[Outputs]:
        """Of a batch's scored positions, row by row, `head_chunk` of them at a time."""
        batch = collate(group)
        if self._peers is None:
            yield from self._network.outputs(batch)
        else:
            yield from self._peers.together(self._network.outputs(batch), batch)


def _refuse_not_finite(sequences: list[Sequence], rows: list[SoftTargets]) -> None:
    def named(is_good: Callable[[SoftTargets], bool]) -> str:
        bad = [one.sequence_id for one, targets in zip(sequences, rows, strict=True) if not is_good(targets)]
        return ", ".join(map(str, bad[:_MOST_NAMED]))

    if ids := named(_is_finite):
        raise WorkError(
            f"the teacher gave a number that is not finite for sequence {ids}; try teachers.0.dtype=float32, or leave "
            f"it out with capture.leave_out=[{ids}]"
        )
    if ids := named(lambda targets: targets.hidden is None or bool(are_finite(targets.hidden).all())):
        raise WorkError(
            f"a hidden state of sequence {ids} is not finite in the dtype that it is kept in; try "
            f"targets.hidden.dtype=bfloat16, or leave it out with capture.leave_out=[{ids}]"
        )


def _is_finite(targets: SoftTargets) -> bool:
    finite = np.isfinite(targets.logits) | (targets.ids == NO_ID)
    return bool(finite.all()) and not np.isnan(targets.tail_odds).any()
