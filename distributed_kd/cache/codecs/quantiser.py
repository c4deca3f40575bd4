"""Levels: the whole numbers that stand for how probable an id is.

A KL of sum p * dz^2 / 2 under a budget is cheapest when the step in log p is proportional to 1/sqrt(p): halving a step
costs a bit whatever p is, and saves distortion in proportion to p * step^2. So levels are uniform in p^a, with
a = 1/2 at the only temperature; where several are listed, p is that of the lowest one, a is smaller, and the step is
the largest that keeps the KL within the budget at each. A level decodes to the mean probability of its cell.

For drawn ids a level is the number of draws, which is exact.

Shapes: N positions, K kept ids, G temperatures, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distributed_kd.cache.codecs.levels import DENSE_LEVELS, HIGHEST_LEVEL, MASS_BITS
from distributed_kd.cache.codecs.tail import NO_TAIL, STEP_BITS
from distributed_kd.cache.soft_targets import SoftTargets

KL_BUDGET = 2.85e-4  # nats a position on the sample, 5% below what is promised
VALUE_BITS = 16
_EXPONENTS = (1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8)
_FINEST, _COARSEST = 1 / 8000, 1 / 4
_HALVINGS = 14
_FIT_VALUES = 1 << 19  # kept logits that the fit looks at
_ODDS_SHIFT = 4  # masses are tabulated by 2^-6 nat of odds, within 16 nats
_ODDS_ENTRIES = 2048


@dataclass(frozen=True)
class Quantiser:
    """`draws` > 0 means levels are counts of so many draws; otherwise they are floor(p^exponent / step + 1/2)."""

    reference: int  # which temperature p is taken at
    exponent: float
    step: float
    draws: int
    dense_top: int
    values: np.ndarray  # [L] int32: logit of a level in 2^-16 nat, at T = 1
    weights: np.ndarray  # [L] int64: probability of a level in 2^-20
    within: np.ndarray  # [1025] int32: the highest level that a mass of i / 1024 allows
    odds_mass: np.ndarray  # [2048] int32: kept mass in 2^-20 by odds at the reference temperature

    def levels(self, targets: SoftTargets) -> np.ndarray:
        """[N, K] int32, -1 for ids that are not kept, those of probability 0 among them. Raises `ValueError`."""
        kept = (targets.ids >= 0) & ~np.isneginf(targets.logits)
        if (~(targets.logits < np.inf) & kept).any():
            raise ValueError("logits that are not finite numbers cannot be cached")
        if self.draws:
            return _counts(targets, kept, self.draws, targets.temperatures[self.reference])
        odds = targets.tail_odds[:, self.reference]
        if np.isnan(odds).any():
            raise ValueError("tail odds that are not numbers cannot be cached")
        powers = _log_probabilities(targets, kept, targets.temperatures[self.reference], odds)
        levels = np.floor(np.exp(self.exponent * powers) / self.step + 0.5)
        return np.where(kept, np.minimum(levels, len(self.values) - 1), -1).astype(np.int32)

    def masses(self, tail_steps: np.ndarray) -> np.ndarray:
        """[N, G] tail odds in steps to [N] int64 kept masses in 2^-20."""
        if self.draws:
            return np.full(len(tail_steps), self.draws * self.weights[1], np.int64)
        steps = tail_steps[:, self.reference].astype(np.int64)
        entry = np.clip((steps >> _ODDS_SHIFT) + _ODDS_ENTRIES // 2, 0, _ODDS_ENTRIES - 1)
        return np.where(steps == NO_TAIL, 1 << MASS_BITS, self.odds_mass[entry].astype(np.int64))


def of_draws(draws: int, temperature: float) -> Quantiser:
    """Levels for `draws` ids drawn at `temperature`. Raises `ValueError` when there are too many."""
    if not 1 <= draws <= HIGHEST_LEVEL:
        raise ValueError(f"{draws} draws a position cannot be cached; at most {HIGHEST_LEVEL} can")
    counts = np.arange(draws + 1)
    values = np.rint(temperature * np.log(np.maximum(counts, 1)) * (1 << VALUE_BITS)).astype(np.int32)
    weights = counts.astype(np.int64) * ((1 << MASS_BITS) // draws)
    return _with_tables(0, 1.0, 1.0, draws, min(DENSE_LEVELS - 1, draws), values, weights)


def fit(sample: SoftTargets, kl_budget: float = KL_BUDGET) -> Quantiser:
    """The exponent and step that take the fewest bits within `kl_budget` at every listed temperature."""
    stride = max(1, sample.ids.size // _FIT_VALUES)
    sample = sample[::stride]
    temperatures = sample.temperatures
    reference = int(np.argmin(temperatures))
    kept = (sample.ids >= 0) & ~np.isneginf(sample.logits)
    logs = [_log_probabilities(sample, kept, t, sample.tail_odds[:, g]) for g, t in enumerate(temperatures)]
    best = None
    for exponent in _EXPONENTS if len(temperatures) > 1 else _EXPONENTS[:1]:
        low, high = np.log(_FINEST), np.log(_COARSEST)
        for _ in range(_HALVINGS if len(sample) else 0):
            middle = (low + high) / 2
            cost = _kl(logs, kept, temperatures, reference, exponent, float(np.exp(middle)))
            low, high = (middle, high) if cost <= kl_budget else (low, middle)
        step = float(np.exp(low)) if len(sample) else 0.005
        levels = _levels(logs[reference], kept, exponent, step)
        bits = _entropy(levels[kept])
        if best is None or bits < best[0]:
            best = (bits, exponent, step, levels)
    assert best is not None
    _, exponent, step, levels = best
    highest = min(HIGHEST_LEVEL, int(np.ceil(1 / step)))
    values = _cell_values(logs[reference], levels, kept, exponent, step, highest + 1)
    values = np.rint(values * temperatures[reference] * (1 << VALUE_BITS)).astype(np.int32)
    cells = (np.arange(highest + 1) * step) ** (1 / exponent)
    weights = np.rint(np.minimum(cells, 1) * (1 << MASS_BITS)).astype(np.int64)
    often = np.bincount(levels[kept], minlength=DENSE_LEVELS)[:DENSE_LEVELS] * 3 >= max(1, len(sample))
    dense_top = int(np.flatnonzero(often)[-1]) if often.any() else 1
    return _with_tables(reference, exponent, step, 0, min(max(dense_top, 1), highest), values, weights)


def _with_tables(
    reference: int, exponent: float, step: float, draws: int, dense_top: int, values: np.ndarray, weights: np.ndarray
) -> Quantiser:
    masses = np.arange(1025, dtype=np.int64) << (MASS_BITS - 10)
    within = np.searchsorted(weights, masses, "right") - 1
    odds = ((np.arange(_ODDS_ENTRIES) - _ODDS_ENTRIES // 2) + 0.5) * 2.0 ** (_ODDS_SHIFT - STEP_BITS)
    odds_mass = np.rint((1 << MASS_BITS) / (1 + np.exp(odds))).astype(np.int32)
    return Quantiser(reference, exponent, step, draws, dense_top, values, weights, within.astype(np.int32), odds_mass)


def _log_probabilities(targets: SoftTargets, kept: np.ndarray, temperature: float, odds: np.ndarray) -> np.ndarray:
    """[N, K] float64 log p_T, -inf where nothing is kept."""
    scaled = np.where(kept, targets.logits.astype(np.float64) / temperature, -np.inf)
    total = np.exp(scaled).sum(axis=1, keepdims=True)
    return scaled - np.log(np.maximum(total, 1e-300)) - np.logaddexp(0.0, odds.astype(np.float64))[:, None]


def _levels(logs: np.ndarray, kept: np.ndarray, exponent: float, step: float) -> np.ndarray:
    return np.where(kept, np.floor(np.exp(exponent * logs) / step + 0.5), -1).astype(np.int64)


def _cell_values(
    logs: np.ndarray, levels: np.ndarray, kept: np.ndarray, exponent: float, step: float, count: int
) -> np.ndarray:
    """[count] log p of each level: of the mean of p in its cell, of the cell's middle where few were seen."""
    middle = np.maximum(np.arange(count), 0.3) * step
    seen = np.bincount(levels[kept], minlength=count)[:count]
    mass = np.bincount(levels[kept], np.exp(logs[kept]), minlength=count)[:count]
    fallback = np.log(middle) / exponent
    enough = (seen >= 32) & (mass > 0)
    return np.where(enough, np.log(np.where(enough, mass, 1) / np.maximum(seen, 1)), fallback)


def _kl(
    logs: list[np.ndarray],
    kept: np.ndarray,
    temperatures: tuple[float, ...],
    reference: int,
    exponent: float,
    step: float,
) -> float:
    """The largest of the mean KLs that the levels add, over the temperatures; the kept mass is exact."""
    levels = _levels(logs[reference], kept, exponent, step)
    count = int(levels.max(initial=0)) + 1
    values = _cell_values(logs[reference], levels, kept, exponent, step, count)[np.maximum(levels, 0)]
    worst = 0.0
    for temperature, exact in zip(temperatures, logs, strict=True):
        p = np.where(kept, np.exp(exact), 0.0)
        scaled = np.where(kept, values * (temperatures[reference] / temperature), -np.inf)
        scaled -= scaled.max(axis=1, keepdims=True, initial=-1e300)
        total = np.where(kept, np.exp(scaled), 0.0).sum(axis=1, keepdims=True)
        decoded = scaled - np.log(np.maximum(total, 1e-300)) + np.log(np.maximum(p.sum(axis=1, keepdims=True), 1e-300))
        worst = max(
            worst, float((p * (np.where(p > 0, exact, 0.0) - np.where(p > 0, decoded, 0.0))).sum(axis=1).mean())
        )
    return worst


def _entropy(values: np.ndarray) -> float:
    counts = np.bincount(values)
    shares = counts[counts > 0] / max(1, len(values))
    return float(-(shares * np.log2(shares)).sum())


def _counts(targets: SoftTargets, kept: np.ndarray, draws: int, temperature: float) -> np.ndarray:
    """[N, K] how often each id was drawn. Raises `ValueError` where logits are not those of `draws` draws."""
    shares = np.where(kept, np.exp(np.where(kept, targets.logits, 0.0).astype(np.float64) / temperature), 0.0)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
    counts = np.rint(shares * draws).astype(np.int32)
    if ((counts < 1) & kept).any() or (counts.sum(axis=1) != draws).any():
        raise ValueError(f"these are not the log-counts of {draws} draws a position")
    return np.where(kept, counts, -1)
