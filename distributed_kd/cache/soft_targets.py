"""What the cache keeps for a position, decoded: the same numbers whichever codec stored them.

For teacher logits z, kept ids and a temperature T:
    p_T(i)    = exp(z_i / T - logZ_T)                 for kept ids
    p_T(tail) = 1 - sum of p_T over kept ids          one more outcome of the distribution
The tail is held as odds, x_T = logsumexp_{i not kept}(z_i/T) - logsumexp_{i kept}(z_i/T), so that both
log p_T(tail) = logsigmoid(x_T) and the log of the kept mass = logsigmoid(-x_T) are exact, at K = 1 as at K = V:
1 - mass cancels at either end. Kept logits may be quantised; the two masses stay exact, since kept probabilities
are normalised to the kept mass. logZ_T follows: logsumexp_{i kept}(z_i/T) - logsigmoid(-x_T).

One set of logits says p_T at every temperature, except where p_T is an average or an estimate: the arithmetic mean of
an ensemble, and ids that were drawn at another temperature. Those carry `log_p`, a set for each temperature.

Shapes: N positions, K kept ids, G temperatures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distributed_kd.errors import RequestError

NO_ID = -1  # fills rows that keep fewer than K ids


@dataclass(frozen=True)
class SoftTargets:
    ids: (
        np.ndarray
    )  # [N, K] int32, the most probable first, or rising where all are kept; NO_ID where a row keeps fewer
    logits: np.ndarray  # [N, K] float32, relative to the row's largest; -inf at NO_ID
    tail_odds: np.ndarray  # [N, G] float32: x_T; -inf where every id is kept, and for drawn ids
    temperatures: tuple[float, ...]
    log_p: np.ndarray | None = None  # [N, G, K] float32: log p_T, -inf at NO_ID; None where the logits say it
    hidden: np.ndarray | None = None  # [N, D] the teacher's hidden state, where it is kept; dtypes as in `hidden.py`

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | np.ndarray) -> SoftTargets:
        log_p = None if self.log_p is None else self.log_p[rows]
        hidden = None if self.hidden is None else self.hidden[rows]
        return SoftTargets(self.ids[rows], self.logits[rows], self.tail_odds[rows], self.temperatures, log_p, hidden)

    def log_probabilities(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """(log p_T of the kept ids [N, K], log p_T of the tail [N]), float32.

        They sum to 1, except ids drawn at another temperature: these do in the mean over draws.
        Raises `RequestError` for a temperature that is not cached.
        """
        kept, log_p_tail = self.log_probabilities_in_double(temperature)
        return kept.astype(np.float32), log_p_tail.astype(np.float32)

    def log_probabilities_in_double(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """The same in float64."""
        if temperature not in self.temperatures:
            raise RequestError(
                f"temperature {temperature:g} is not in the cache; it holds {[float(t) for t in self.temperatures]}"
            )
        place = self.temperatures.index(temperature)
        odds = self.tail_odds[:, place].astype(np.float64)
        log_p_tail = -np.logaddexp(0.0, -odds)
        if self.log_p is not None:
            return self.log_p[:, place].astype(np.float64), log_p_tail
        scaled = self.logits.astype(np.float64) / temperature
        kept = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))  # the largest is 0: no overflow
        kept += -np.logaddexp(0.0, odds)[:, None]
        return kept, log_p_tail

    @staticmethod
    def concatenate(parts: list[SoftTargets]) -> SoftTargets:
        """Rows of all parts in order; parts must be of one kind, at the same temperatures; narrower ones are filled."""
        width = max(part.ids.shape[1] for part in parts)

        def fill(array: np.ndarray, value: float) -> np.ndarray:
            missing = width - array.shape[-1]
            return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)], constant_values=value)

        log_p = [part.log_p for part in parts if part.log_p is not None]
        hidden = [part.hidden for part in parts if part.hidden is not None]

        return SoftTargets(
            np.concatenate([fill(part.ids, NO_ID) for part in parts]),
            np.concatenate([fill(part.logits, -np.inf) for part in parts]),
            np.concatenate([part.tail_odds for part in parts]),
            parts[0].temperatures,
            np.concatenate([fill(array, -np.inf) for array in log_p]) if log_p else None,
            np.concatenate(hidden) if hidden else None,
        )
