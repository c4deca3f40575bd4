"""The teacher's network on the device, or the devices, of one replica.

The body runs over a batch; the head is applied to the scored positions alone, `head_chunk` of them at a time, so
the logits that exist at once are [head_chunk, V], never [B, S, V].

Shapes: B sequences, S ids in the longest, D hidden size, V vocabulary, n positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distributed_kd.corpus.batch import Batch
from distributed_kd.models import parts
from distributed_kd.models.load import choose_device, load_model, resolve_dtype
from distributed_kd.models.locate import locate
from distributed_kd.recipe import Capture, Teacher


class Outputs(NamedTuple):
    """Of n scored positions."""

    logits: Tensor  # [n, V] float32
    hidden: Tensor | None  # [n, D], where a layer's states are asked for


class Network:
    """Loads the teacher and checks its head against its own forward. Raises `RequestError` when it does not fit.

    layer: whose hidden states are wanted too, as transformers numbers them.

    With several devices, every rank of the process group makes one, and they go through the same batches together.
    """

    def __init__(self, teacher: Teacher, capture: Capture, rank: int = 0, layer: int | None = None) -> None:
        kind = choose_device().type
        self.device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
        self._chunk = capture.head_chunk
        folder = locate(teacher.model, teacher.revision)
        dtype = resolve_dtype(teacher.dtype, self.device)
        model = load_model(folder, dtype, self.device, teacher.devices_per_replica)
        parts.check(model)
        self._body = parts.body_of(model)
        self._with_state = None if layer is None else parts.body_with_state(model, layer)
        self._head = parts.head_of(model)
        self.vocabulary_size = self._head.rows

    @torch.inference_mode()
    def outputs(self, batch: Batch) -> Iterator[Outputs]:
        """Of the batch's scored positions, row by row, `head_chunk` of them at a time."""
        ids, positions, present = map(self._moved, (batch.input_ids, batch.position_ids, batch.present))
        features = None if batch.features is None else self._moved(batch.features)
        state = None
        if self._with_state is None:
            hidden = self._body(ids, positions, present, features)  # [B, S, D]
        else:
            hidden, state = self._with_state(ids, positions, present)
        # By number and not by mask: the host would wait for the device to count what a mask selects.
        numbers = self._moved(np.flatnonzero(batch.loss_mask))
        for chosen in numbers.split(self._chunk):
            kept = None if state is None else state.flatten(0, 1).index_select(0, chosen)
            yield Outputs(self._head.logits(hidden.flatten(0, 1).index_select(0, chosen)), kept)

    def _moved(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)
