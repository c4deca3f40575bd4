"""What a position is trained on: its hard label and its soft targets at one temperature, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class PositionTargets:
    """N positions, K kept ids. Ids outside the student's vocabulary are taken for tail."""

    labels: Tensor  # [N] int64, below 0 where there is none
    ids: Tensor  # [N, K] int64
    log_p: Tensor  # [N, K] float32, log p_T; -inf at ids that do not count
    log_p_tail: Tensor  # [N] float32
    weight: Tensor | None = None  # [N] float32, what the position's loss is multiplied by; None: 1
    hidden: Tensor | None = None  # [N, D] the teacher's hidden state, where the cache keeps it

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def total_weight(self) -> float:
        """What the loss, summed over the positions, is a mean over."""
        return float(len(self)) if self.weight is None else float(self.weight.double().sum())

    @property
    def labelled_weight(self) -> float:
        """The same of the positions with a label."""
        has_label = self.labels >= 0
        return float((has_label if self.weight is None else self.weight.double()[has_label]).sum())

    def rows(self, begin: int, end: int) -> PositionTargets:
        return self._each(lambda tensor: tensor[begin:end])

    def chosen(self, mask: Tensor) -> PositionTargets:
        """Those of mask [N] bool."""
        return self._each(lambda tensor: tensor[mask])

    def to(self, device: torch.device) -> PositionTargets:
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> PositionTargets:
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(tensor) for name, tensor in own.items() if tensor is not None})
