"""The teacher on its accelerator: sequences in, soft targets of their scored positions out.

The body runs over a batch; the head is applied to the scored positions alone, `head_chunk` of them at a time, so
the logits that exist at once are [head_chunk, V], never [B, S, V].
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from distributed_kd.cache.soft_targets import NO_ID, SoftTargets
from distributed_kd.corpus.batch import by_tokens, collate
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import RequestError, WorkError
from distributed_kd.models import parts
from distributed_kd.models.load import choose_device, load_causal_lm, resolve_dtype
from distributed_kd.models.locate import locate
from distributed_kd.recipe import Capture, Targets, Teacher
from distributed_kd.teacher.targets import choose, numbers_of


class TeacherForward:
    """Loads the teacher and checks its head against its own forward. Raises `RequestError` when it does not fit."""

    def __init__(self, teacher: Teacher, targets: Targets, capture: Capture) -> None:
        self.targets = targets
        self.capture = capture
        self.positions = 0  # that have passed through the head, ever
        self.device = choose_device()
        folder = locate(teacher.model, teacher.revision)
        model = load_causal_lm(folder, resolve_dtype(teacher.dtype, self.device), self.device)
        parts.check(model)
        self._body = parts.body_of(model)
        self._head = parts.head_of(model)
        self.vocabulary_size = self._head.weight.shape[0]
        if targets.keeps(self.vocabulary_size) > self.vocabulary_size:
            raise RequestError(f"targets.k {targets.k} is more than the teacher's {self.vocabulary_size} ids")

    @torch.inference_mode()
    def __call__(self, sequences: list[Sequence]) -> list[SoftTargets]:
        """The targets of each sequence's scored positions, [positions, K] each."""
        rows = []
        for group in by_tokens(sequences, self.capture.batch_tokens):
            numbers = numbers_of(self.targets, group)
            chunks, begin = [], 0
            for logits in self.logits(group):
                end = begin + len(logits)
                chunks.append(choose(logits, self.targets, None if numbers is None else numbers[begin:end]))
                begin = end
            flat = SoftTargets.concatenate(chunks)
            ends = np.cumsum([0] + [sequence.positions for sequence in group])
            rows += [flat[begin:end] for begin, end in pairwise(ends)]
        for sequence, targets in zip(sequences, rows, strict=True):
            finite = np.isfinite(targets.logits) | (targets.ids == NO_ID)
            if not finite.all() or np.isnan(targets.tail_odds).any():
                raise WorkError(
                    f"the teacher gave a number that is not finite for sequence {sequence.sequence_id}; "
                    f"try teachers.0.dtype=float32"
                )
        return rows

    @torch.inference_mode()
    def logits(self, group: list[Sequence]) -> Iterator[Tensor]:
        """[n, V] float32 logits of a batch's scored positions, row by row, `head_chunk` of them at a time."""
        batch = collate(group)
        hidden = self._body(
            torch.from_numpy(batch.input_ids).to(self.device), torch.from_numpy(batch.position_ids).to(self.device)
        )
        scored = hidden[torch.from_numpy(batch.loss_mask).to(self.device)]  # [positions, D]
        for chunk in scored.split(self.capture.head_chunk):
            self.positions += len(chunk)
            yield self._head.logits(chunk).float()
