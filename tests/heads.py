"""Watching how many positions a head is applied to at once."""

from __future__ import annotations

import pytest
from torch import Tensor

from distributed_kd.models.parts import Head


def record_head_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on, the number of positions of every call to `Head.logits`."""
    rows: list[int] = []
    logits = Head.logits

    def recorded(self: Head, hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(Head, "logits", recorded)
    return rows
