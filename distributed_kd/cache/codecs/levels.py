"""How probable the kept ids of a position are, as a stream: which levels occur, and how often.

A level is a whole number (see `quantiser.py`); within a position levels only fall, so the run lengths say it all. High
levels are rare and coded one by one as the distance below the highest level that is still possible; from `dense_top`
down every level's count is coded. What guides both is the mass: the kept mass is known (from the tail), each level
stands for `weight[level]` of it, so what is left for the rest nearly determines it towards the end.

Small numbers are symbols under static tables, one table for each context; large ones add raw bits.

Shapes: N positions, W ids kept at most.
"""

# mypy: disable-error-code="arg-type,assignment"
from __future__ import annotations

import numpy as np

from distributed_kd.cache.codecs import rans
from distributed_kd.cache.codecs.compiled import compiled, inlined

MASS_BITS = 20  # weights and masses are in units of 2^-20
HIGHEST_LEVEL = 8191
DENSE_LEVELS = 32
MISSING = 0  # context of how many ids fewer than W a row keeps
SPARSE = 1
RANKS, BOUNDS, RATIOS = 4, 24, 16
DENSE = SPARSE + RANKS * BOUNDS * RATIOS
FILLS = 32
CONTEXTS = DENSE + DENSE_LEVELS * FILLS
_LARGE, _STOP, _ABOVE, _ALL = 28, 29, 30, 31
_LARGE_BITS = 20
_LEVEL_BITS = 13


_LENGTHS = np.array([number.bit_length() for number in range(4096)], np.int32)


@inlined
def bit_length(value):  # type: ignore[no-untyped-def]
    """0 <= value < 2^48."""
    if value < 4096:
        return np.int64(_LENGTHS[value])
    if value < 1 << 24:
        return np.int64(_LENGTHS[value >> 12]) + 12
    if value < 1 << 36:
        return np.int64(_LENGTHS[value >> 24]) + 24
    return np.int64(_LENGTHS[value >> 36]) + 36


@inlined
def logarithm(value, fraction):  # type: ignore[no-untyped-def]
    """log2 in steps of 2^-fraction, near enough, for value > 0: the bit length and the bits after the leading one."""
    length = bit_length(value)
    if length <= fraction:
        return length << fraction
    return (length << fraction) | ((value >> (length - 1 - fraction)) & ((1 << fraction) - 1))


@inlined
def add_number(number, context, events, count):  # type: ignore[no-untyped-def]
    """A number >= 0 as one symbol, exact below 8, then two an octave with raw bits; returns the new count."""
    if number < 8:
        events[count, 0], events[count, 1] = context, number
        return count + 1
    length = bit_length(number)
    if length > 13:
        events[count, 0], events[count, 1] = context, _LARGE
        events[count + 1, 0], events[count + 1, 1] = -_LARGE_BITS, number
        return count + 2
    bits = length - 2
    events[count, 0], events[count, 1] = context, 8 + 2 * (length - 4) + ((number >> bits) & 1)
    events[count + 1, 0], events[count + 1, 1] = -bits, number & ((1 << bits) - 1)
    return count + 2


@inlined
def pop_number_after(symbol, x, words, place, end):  # type: ignore[no-untyped-def]
    """(number, x, place): the rest of a number whose symbol <= `_LARGE` has been popped."""
    if symbol < 8:
        return symbol, x, place
    if symbol == _LARGE:
        return rans.pop_bits(x, words, place, end, _LARGE_BITS)
    bits = 2 + ((symbol - 8) >> 1)
    low, x, place = rans.pop_bits(x, words, place, end, bits)
    return ((2 + (symbol & 1)) << bits) | low, x, place


@inlined
def sparse_context(rank, bound, mass, weight):  # type: ignore[no-untyped-def]
    ratio = logarithm(((mass << 4) // (weight[bound] + 1)) + 1, 1) - 4
    return (
        SPARSE
        + (min(rank, RANKS - 1) * BOUNDS + min(logarithm(bound + 1, 1), BOUNDS - 1)) * RATIOS
        + min(max(ratio, 0), RATIOS - 1)
    )


@inlined
def dense_context(level, mass, rest, weight):  # type: ignore[no-untyped-def]
    fill = logarithm((mass << 6) // (rest * weight[level] + 1) + 1, 2) - 20
    return DENSE + level * FILLS + min(max(fill, 0), FILLS - 1)


@inlined
def highest_within(mass, weight, within):  # type: ignore[no-untyped-def]
    """The highest level that a mass allows, and two more for rounding. within: [1025], by mass / 2^10."""
    return min(within[min(mass >> (MASS_BITS - 10), 1024)] + 2, len(weight) - 1)


@compiled
def level_events(levels, kept, masses, weight, within, dense_top, exact, events):  # type: ignore[no-untyped-def]
    """Writes the events of N rows; returns how many.

    levels: [N, W] int32, falling, -1 after the kept ones; kept: [N]; masses: [N] int64. `exact` says that the weights
    of a row sum to its mass (counts of draws), and so end it; otherwise the number of kept ids is coded and does.
    """
    count = 0
    width = levels.shape[1]
    for row in range(len(levels)):
        mass = np.int64(masses[row])
        rest = np.int64(kept[row])
        if not exact:
            count = add_number(width - rest, MISSING, events, count)
        bound = np.int64(len(weight) - 1)
        rank = 0
        while rest > 0:
            bound = min(bound, highest_within(mass, weight, within))
            context = sparse_context(rank, bound, mass, weight)
            level = np.int64(levels[row, rank])
            if level <= dense_top:
                events[count, 0], events[count, 1] = context, _STOP
                count += 1
                break
            if level > bound:
                events[count, 0], events[count, 1] = context, _ABOVE
                events[count + 1, 0], events[count + 1, 1] = -_LEVEL_BITS, level
                count += 2
            else:
                count = add_number(bound - level, context, events, count)
            bound = level
            mass = max(mass - weight[level], 0)
            rank += 1
            rest -= 1
        level = np.int64(dense_top)
        while rest > 0 and level > (1 if exact else 0):
            run = np.int64(0)
            while run < rest and levels[row, rank + run] == level:
                run += 1
            context = dense_context(level, mass, 1 if exact else rest, weight)
            if run == rest and not exact:
                events[count, 0], events[count, 1] = context, _ALL
                count += 1
            else:
                count = add_number(run, context, events, count)
            mass = max(mass - run * weight[level], 0)
            rank += run
            rest -= run
            level -= 1
    return count


@compiled
def pop_levels(words, masses, weight, within, dense_top, exact, starts, levels, kept):  # type: ignore[no-untyped-def]
    """The inverse of `level_events`: fills levels and kept; returns whether the stream was whole and in bounds."""
    top, end = np.int64(rans.HEAD), np.int64(len(words))
    x, place = rans.begin(words, top, end)
    width = levels.shape[1]
    highest = np.int64(len(weight) - 1)
    lowest = np.int64(1 if exact else 0)
    damaged = False  # looked at once a row, values being kept in bounds: exits in the loops cost a third of the speed
    for row in range(len(levels)):
        mass = np.int64(masses[row])
        rest = np.int64(width)
        if not exact:
            symbol, x, place = rans.pop_symbol(x, words, place, end, starts, MISSING)
            damaged |= symbol > _LARGE
            missing, x, place = pop_number_after(min(symbol, _LARGE), x, words, place, end)
            damaged |= missing > width
            rest = max(width - missing, 0)
        kept[row] = rest
        bound = highest
        rank = 0
        while rest > 0 and not (exact and mass == 0):
            bound = min(bound, highest_within(mass, weight, within))
            context = sparse_context(rank, bound, mass, weight)
            symbol, x, place = rans.pop_symbol(x, words, place, end, starts, context)
            if symbol == _STOP:
                break
            if symbol > _STOP:
                level, x, place = rans.pop_bits(x, words, place, end, _LEVEL_BITS)
                damaged |= symbol != _ABOVE
            else:
                distance, x, place = pop_number_after(symbol, x, words, place, end)
                level = bound - distance
            damaged |= level <= dense_top or level > highest
            level = min(max(level, 0), highest)
            levels[row, rank] = level
            bound = level
            mass = max(mass - weight[level], 0)
            rank += 1
            rest -= 1
        level = np.int64(dense_top)
        while rest > 0 and level > lowest and not (exact and mass == 0):
            context = dense_context(level, mass, 1 if exact else rest, weight)
            symbol, x, place = rans.pop_symbol(x, words, place, end, starts, context)
            run = rest
            if symbol <= _LARGE:
                run, x, place = pop_number_after(symbol, x, words, place, end)
            else:
                damaged |= symbol != _ALL
            damaged |= run > rest
            run = min(run, rest)
            for column in range(rank, rank + run):
                levels[row, column] = level
            rank += run
            mass = max(mass - run * weight[level], 0)
            rest -= run
            level -= 1
        if exact:  # what is left of the draws was drawn once each
            once = mass // weight[1]
            damaged |= once > rest
            rest = min(once, rest)
            kept[row] = rank + rest
        for column in range(rank, rank + rest):
            levels[row, column] = lowest
        for column in range(rank + rest, width):
            levels[row, column] = -1
        if damaged or place > len(words):
            return False
    return rans.is_whole(x, words, place, end)


def most_events(rows: int, width: int) -> int:
    """How many events `level_events` may write."""
    return rows * (2 * width + 2 * DENSE_LEVELS + 4)
