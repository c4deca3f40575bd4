"""The mean of several teachers' soft targets, position by position: Hinton, Vinyals and Dean (2015), section 3.

Member m at temperature T says p_m,T(i) of the ids it kept and p_m,T(tail) of all others together. With V_m its
vocabulary and K_m how many ids it kept at a position, an id that it did not keep is given an even share of the tail,

    s_m,T = p_m,T(tail) / (V_m - K_m)

and an id that it does not have (i >= V_m) 0. U is the union of the ids that the members kept at a position, U_m those
of them that m has; w_m are weights that sum to 1; V is the largest V_m.

    arithmetic  p_T(i) = sum_m w_m p_m,T(i)                              for i in U
                p_T(tail) = sum_m w_m s_m,T (V_m - |U_m|)                what is left of each member's tail
                p_T(U) = sum_m w_m (p_m,T(kept) + s_m,T (|U_m| - K_m))
    geometric   p_T(i) = prod_m p_m,T(i)^w_m / Z_T                       for i in U: the mean of the members' logits
                p_T(tail) = (V - |U|) prod_m s_m,T^w_m / Z_T             all V_m being V
                Z_T such that they sum to 1

Every sum is of numbers that are not negative, taken over logarithms in float64: nothing cancels, nothing underflows,
and p_T(U) + p_T(tail) = 1 without being made so. Where one member gives an id 0 its geometric mean is 0. A member of
drawn ids has no tail, so that an id it did not draw counts as 0: the arithmetic mean pools the draws.

Means at several temperatures are no softmax of one set of logits, and carry `log_p`; so do means of members that
carry it. The exception is the geometric mean of members that keep every id: sum_m w_m z_m holds at all temperatures.

**What is not known.** A member that keeps its most probable ids says that one it did not keep has a probability
between 0 and u = min(its smallest kept one, p_m,T(tail)). The share is then at most max(s, u - s) from it, so

    sum_m w_m (|U_m| - K_m) max(s_m,T, u_m,T - s_m,T)

bounds the L1 distance over U between the merged p_T and the arithmetic mean of the whole distributions.

Shapes: N positions, W ids in the widest union, K kept ids of a member, G temperatures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from distributed_kd.cache.soft_targets import NO_ID, SoftTargets

Mean = Literal["arithmetic", "geometric"]


@dataclass(frozen=True)
class Member:
    targets: SoftTargets
    vocabulary_size: int


def mean_of(members: list[Member], weights: list[float], mean: Mean, keeps_all: bool) -> tuple[SoftTargets, np.ndarray]:
    """(the members' mean, the error bound [N, G] float64 of the module's docstring, which is the arithmetic mean's).

    Members have the same N positions and temperatures; `weights` sum to 1. keeps_all: every member keeps every id of
    its vocabulary, and so does the mean, in rising order. Raises `ValueError` for targets that have no such mean.
    """
    temperatures = members[0].targets.temperatures
    vocabulary = max(member.vocabulary_size for member in members)
    union, slots = _union([member.targets.ids for member in members])
    shares = [_Shares(member, union, own) for member, own in zip(members, slots, strict=True)]
    log_p = np.empty((len(union), len(temperatures), union.shape[1]))
    odds = np.empty((len(union), len(temperatures)))
    bound = np.zeros_like(odds)
    for place, temperature in enumerate(temperatures):
        tables = [own.at(temperature) for own in shares]
        combine = _arithmetic if mean == "arithmetic" else _geometric
        log_p[:, place], odds[:, place] = combine(tables, np.log(weights), vocabulary - (union != NO_ID).sum(axis=1))
        for weight, table in zip(weights, tables, strict=True):
            bound[:, place] += weight * table.error_bound()
    if keeps_all and (odds > -np.inf).any():
        raise ValueError("a member that is to keep every id has a tail")
    one_softmax = len(temperatures) == 1 or (mean == "geometric" and keeps_all)
    has_log_p = not one_softmax or any(member.targets.log_p is not None for member in members)
    return _targets(union, log_p, odds, temperatures, has_log_p, keeps_all), bound


def _union(ids: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Of arrays [N, K_m]: (the ids of each row once, rising, filled with NO_ID [N, W]; the place of each id in it).

    The place of NO_ID is W.
    """
    everything = np.concatenate(ids, axis=1)
    order = np.argsort(everything, axis=1, kind="stable")
    ordered = np.take_along_axis(everything, order, axis=1)
    is_new = ordered != NO_ID
    is_new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    ranks = np.cumsum(is_new, axis=1) - 1
    width = int(ranks[:, -1].max(initial=0)) + 1
    union = np.full((len(everything), width), NO_ID, np.int32)
    rows, _ = np.nonzero(is_new)
    union[rows, ranks[is_new]] = ordered[is_new]
    slots = np.empty_like(order)
    np.put_along_axis(slots, order, np.where(ordered == NO_ID, width, ranks), axis=1)
    return union, np.split(slots, np.cumsum([own.shape[1] for own in ids])[:-1], axis=1)


@dataclass(frozen=True)
class _Table:
    """What a member says at one temperature. `spread` of the union's ids have the share, `left` ids lie outside it."""

    log_p: np.ndarray  # [N, W], -inf where the union has no id
    log_kept: np.ndarray  # [N] log mass of the ids that the member kept
    log_share: np.ndarray  # [N]
    log_tail: np.ndarray  # [N]
    log_smallest: np.ndarray  # [N] of the ids that it kept
    spread: np.ndarray  # [N] int64
    left: np.ndarray  # [N] int64

    def error_bound(self) -> np.ndarray:
        """[N] how far the union's probabilities can be from the member's own, summed."""
        share, upper = np.exp(self.log_share), np.exp(np.minimum(self.log_smallest, self.log_tail))
        return self.spread * np.maximum(share, upper - share)


class _Shares:
    """A member's targets laid out over the union."""

    def __init__(self, member: Member, union: np.ndarray, slots: np.ndarray) -> None:
        self.targets = member.targets
        self.slots = slots
        self.has = (union != NO_ID) & (union < member.vocabulary_size)
        kept, known = (self.targets.ids != NO_ID).sum(axis=1), self.has.sum(axis=1)
        self.unkept = member.vocabulary_size - kept
        self.spread = known - kept
        self.left = member.vocabulary_size - known

    def at(self, temperature: float) -> _Table:
        log_p, log_tail = self.targets.log_probabilities_in_double(temperature)
        if ((log_tail > -np.inf) & (self.unkept < 1)).any():
            raise ValueError("a position keeps every id and has a tail")
        if not (log_p.max(axis=1) > -np.inf).all():
            raise ValueError("a position keeps no id of a probability")
        log_share = log_tail - np.log(np.maximum(self.unkept, 1))
        width = self.has.shape[1]
        table = np.full((len(log_p), width + 1), -np.inf)
        table[:, :width] = np.where(self.has, log_share[:, None], -np.inf)
        np.put_along_axis(table, self.slots, log_p, axis=1)
        odds = self.targets.tail_odds[:, self.targets.temperatures.index(temperature)].astype(np.float64)
        smallest = np.where(self.targets.ids != NO_ID, log_p, np.inf).min(axis=1)
        return _Table(table[:, :width], -np.logaddexp(0.0, odds), log_share, log_tail, smallest, self.spread, self.left)


def _arithmetic(tables: list[_Table], log_weights: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log p_T over the union [N, W], tail odds [N])."""
    log_p = np.full(tables[0].log_p.shape, -np.inf)
    log_kept, log_tail = np.full(len(log_p), -np.inf), np.full(len(log_p), -np.inf)
    for weight, own in zip(log_weights, tables, strict=True):
        np.logaddexp(log_p, weight + own.log_p, out=log_p)
        spread = np.logaddexp(own.log_kept, _log(own.spread) + own.log_share)
        log_kept = np.logaddexp(log_kept, weight + spread)
        log_tail = np.logaddexp(log_tail, weight + _log(own.left) + own.log_share)
    return log_p, log_tail - log_kept


def _geometric(tables: list[_Table], log_weights: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log p_T over the union [N, W], tail odds [N]). outside: [N] ids that no member kept."""
    log_p = np.zeros(tables[0].log_p.shape)
    log_tail = _log(outside)
    for weight, own in zip(np.exp(log_weights), tables, strict=True):
        log_p += weight * own.log_p
        log_tail = log_tail + weight * own.log_share
    log_kept = np.logaddexp.reduce(log_p, axis=1)
    total = np.logaddexp(log_kept, log_tail)
    if not (log_kept > -np.inf).all():
        raise ValueError("members have no id in common that each gives a probability: no geometric mean")
    return log_p - total[:, None], log_tail - log_kept


def _log(counts: np.ndarray) -> np.ndarray:
    """Of whole numbers of at least 0, -inf of 0."""
    return np.where(counts > 0, np.log(np.maximum(counts, 1)), -np.inf)


def _targets(
    union: np.ndarray,
    log_p: np.ndarray,
    odds: np.ndarray,
    temperatures: tuple[float, ...],
    has_log_p: bool,
    keeps_all: bool,
) -> SoftTargets:
    """Soft targets of the union [N, W]; without `keeps_all` the most probable first, ids of probability 0 left out."""
    first = log_p[:, 0]
    logits = temperatures[0] * (first - first.max(axis=1, keepdims=True, initial=-np.inf))
    if not keeps_all:
        is_kept = (log_p > -np.inf).any(axis=1)
        width = int(is_kept.sum(axis=1).max(initial=1))
        order = np.argsort(np.where(is_kept, -logits, np.nan), axis=1, kind="stable")[:, :width]  # NaN comes last
        union = np.where(np.take_along_axis(is_kept, order, 1), np.take_along_axis(union, order, 1), NO_ID)
        logits = np.take_along_axis(logits, order, 1)
        log_p = np.take_along_axis(log_p, order[:, None], 2)
    return SoftTargets(
        union.astype(np.int32),
        logits.astype(np.float32),
        odds.astype(np.float32),
        temperatures,
        log_p.astype(np.float32) if has_log_p else None,
    )
