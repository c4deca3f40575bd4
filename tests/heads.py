"""Watching how many positions a head is applied to at once."""

from __future__ import annotations

import pytest
from torch import Tensor

from distributed_kd.models.parts import Head


def record_head_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on, the number of positions of every product with a head, in `Head.logits` or for kernels."""
    rows: list[int] = []
    product = Head.product

    def recorded(self: Head, hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return product(self, hidden)

    monkeypatch.setattr(Head, "product", recorded)
    return rows
