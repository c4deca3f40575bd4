"""The held-out positions that the report shows: those where the student is furthest from the teacher and nearest to it,
and some that are drawn.

They are chosen while models are scored, since afterwards no distribution is there any more: a chunk's best candidates
replace those that are held. Which ones they are follows from the scores and a seed alone. Shapes: n positions of a
chunk, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

SHOWN_IDS = 5
Reason = Literal["largest", "smallest", "drawn"]


@dataclass(frozen=True)
class Position:
    """What each model says in one held-out position."""

    number: int  # in the order in which positions are scored
    teacher_entropy: float  # nats
    kl: dict[str, float]  # by model, from the teacher, nats
    best: dict[str, list[tuple[int, float]]]  # by model: its `SHOWN_IDS` most probable ids with their probabilities


class Chosen:
    """Up to `each` positions for each reason, of `positions` in all; `model` is the one whose KL decides."""

    def __init__(self, model: str, each: int, positions: int, seed: int = 0) -> None:
        self._model = model
        self._each = each
        drawn = np.random.default_rng(seed).choice(positions, min(each, positions), replace=False)
        self._numbers = np.sort(drawn)
        self._held: dict[Reason, list[Position]] = {"largest": [], "smallest": [], "drawn": []}

    def look(self, first: int, log_q: dict[str, Tensor], kl: dict[str, np.ndarray], entropy: np.ndarray) -> None:
        """log_q: [n, V] by model, of positions `first` and on; kl [n] by model, entropy [n]: nats."""
        own = kl[self._model]
        order = np.argsort(own, kind="stable")
        drawn = self._numbers[(first <= self._numbers) & (self._numbers < first + len(own))] - first
        candidates: dict[Reason, np.ndarray] = {
            "largest": np.argsort(-own, kind="stable")[: self._each], "smallest": order[: self._each], "drawn": drawn,
        }  # fmt: skip
        for reason, rows in candidates.items():
            for row in rows.tolist():
                if self._is_taken(reason, float(own[row])):
                    position = _position(row, first, log_q, kl, entropy)
                    self._held[reason] = self._ranked(reason, [*self._held[reason], position])[: self._each]

    def _is_taken(self, reason: Reason, kl: float) -> bool:
        """Whether it is held for now: of equals the first one is."""
        held = self._held[reason]
        if reason == "drawn" or len(held) < self._each:
            return True
        last = held[-1].kl[self._model]
        return kl > last if reason == "largest" else kl < last

    def _ranked(self, reason: Reason, positions: list[Position]) -> list[Position]:
        sign = {"largest": -1.0, "smallest": 1.0, "drawn": 0.0}[reason]
        return sorted(positions, key=lambda one: (sign * one.kl[self._model], one.number))

    def positions(self) -> list[tuple[Reason, Position]]:
        """The largest KL first, then the smallest, then those drawn; one that is there for two reasons, once."""
        found: dict[int, tuple[Reason, Position]] = {}
        for reason, held in self._held.items():
            for position in held:
                found.setdefault(position.number, (reason, position))
        return list(found.values())


def _position(
    row: int, first: int, log_q: dict[str, Tensor], kl: dict[str, np.ndarray], entropy: np.ndarray
) -> Position:
    best = {}
    for name, own in log_q.items():
        values, ids = own[row].topk(min(SHOWN_IDS, own.shape[1]))
        best[name] = list(zip(ids.tolist(), values.exp().tolist(), strict=True))
    return Position(first + row, float(entropy[row]), {name: float(own[row]) for name, own in kl.items()}, best)
