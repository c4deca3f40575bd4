"""Tail odds as whole numbers, and as a stream.

The odds x_T (see `soft_targets.py`) are rounded to 2^-10 nat: the tail mass is then within 0.05% of itself, which
costs less than 1e-7 nat of KL. The number is cut in a nat (a symbol, given that of the temperature before), a 32nd
of a nat (a symbol given the nat) and five bits. Odds outside -15 to 14 nats take an escape and 24 bits; the -inf of a
tail of nothing is a symbol of its own.

Shapes: N positions, G temperatures.
"""

from __future__ import annotations

import numpy as np

from distributed_kd.cache.codecs import rans
from distributed_kd.cache.codecs.compiled import compiled

STEP_BITS = 10
NO_TAIL = -(1 << 23)  # stands for -inf
_ESCAPE, _NOTHING = 0, 31
_ZERO = 1 << 14  # where odds of 0 lie among the 2^15 numbers that need no escape


def contexts(temperatures: int) -> int:
    return temperatures * 2 * rans.SYMBOLS


def quantise(odds: np.ndarray) -> np.ndarray:
    """[N, G] float32 -> [N, G] int32 in 2^-10 nat. Raises `ValueError` for NaN."""
    if np.isnan(odds).any():
        raise ValueError("tail odds that are not numbers cannot be cached")
    steps = np.rint(np.clip(odds.astype(np.float64), -8000, 8000) * (1 << STEP_BITS)).astype(np.int32)
    return np.where(np.isneginf(odds), np.int32(NO_TAIL), steps)


def dequantise(steps: np.ndarray) -> np.ndarray:
    """The inverse: float32, exact in the step."""
    odds = steps.astype(np.float32) / np.float32(1 << STEP_BITS)
    return np.where(steps == NO_TAIL, np.float32(-np.inf), odds)


@compiled
def tail_events(steps, events):  # type: ignore[no-untyped-def]
    """Writes the events of [N, G] steps, at most 3 each; returns how many."""
    count = 0
    for row in range(steps.shape[0]):
        before = np.int64(0)
        for column in range(steps.shape[1]):
            context = column * 2 * rans.SYMBOLS
            number = np.int64(steps[row, column]) + _ZERO
            nat = number >> STEP_BITS
            if steps[row, column] == NO_TAIL:
                nat = np.int64(_NOTHING)
            elif nat < 1 or nat >= _NOTHING:
                nat = np.int64(_ESCAPE)
            events[count, 0], events[count, 1] = context + before, nat
            count += 1
            if nat == _ESCAPE:
                raw = np.int64(steps[row, column]) - NO_TAIL
                events[count, 0], events[count, 1] = -12, raw >> 12
                events[count + 1, 0], events[count + 1, 1] = -12, raw & 4095
                count += 2
            elif nat != _NOTHING:
                events[count, 0], events[count, 1] = context + rans.SYMBOLS + nat, (number >> 5) & 31
                events[count + 1, 0], events[count + 1, 1] = -5, number & 31
                count += 2
            before = nat
    return count


@compiled
def pop_tail(words, starts, steps):  # type: ignore[no-untyped-def]
    """The inverse: fills steps; returns whether the stream was whole."""
    top, end = np.int64(rans.HEAD), np.int64(len(words))
    x, place = rans.begin(words, top, end)
    for row in range(steps.shape[0]):
        before = np.int64(0)
        for column in range(steps.shape[1]):
            context = column * 2 * rans.SYMBOLS
            nat, x, place = rans.pop_symbol(x, words, place, end, starts, context + before)
            if nat == _NOTHING:
                steps[row, column] = NO_TAIL
            elif nat == _ESCAPE:
                high, x, place = rans.pop_bits(x, words, place, end, 12)
                low, x, place = rans.pop_bits(x, words, place, end, 12)
                steps[row, column] = (high << 12) + low + NO_TAIL
            else:
                part, x, place = rans.pop_symbol(x, words, place, end, starts, context + rans.SYMBOLS + nat)
                low, x, place = rans.pop_bits(x, words, place, end, 5)
                steps[row, column] = (nat << STEP_BITS) + (part << 5) + low - _ZERO
            before = nat
    return rans.is_whole(x, words, place, end)
