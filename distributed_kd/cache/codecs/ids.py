"""Which ids a position keeps, as a stream: a type of position, then for each level the *set* of ids at that level.

A position is of one of C types, found when the tables are made by clustering positions that keep similar ids; the
type is coded given the class of the current token, the ids given the type. A type gives ids of about the same
frequency one class of equal shares (at most 31 classes, and an escape into the order of all ids), so that a symbol
is found by comparing with 32 numbers and one multiplication.

The order of equal levels carries nothing, so it is not paid for: before an id is pushed the encoder pops from its own
stack which of the set's remaining ids it shall be, and the decoder pushes that choice back, having seen the id's
place among those it has (bits back: Townsend et al. 2019; for sets: Severo et al. 2022). A set of n saves log2(n!)
bits. The first id is a set by itself, so that the most probable id of a position survives a tie.

Shapes: N positions, W ids kept at most, V vocabulary, C types, U ids seen when the tables were made.
"""

from __future__ import annotations

import numpy as np

from distributed_kd.cache.codecs import rans
from distributed_kd.cache.codecs.compiled import compiled, inlined

ID_BITS = 20
CLASSES = 32  # class 0 is the escape
GUIDE_BITS = 12
LARGEST_SET = 256  # longer runs of one level are several sets, so that keeping them sorted stays cheap
_RECIPROCAL_BITS = 40


def reciprocals(shares: np.ndarray) -> np.ndarray:
    """r such that (offset * r) >> 40 == offset // share for offset < 2^20."""
    return ((1 << _RECIPROCAL_BITS) + shares.astype(np.int64) - 1) // np.maximum(shares, 1)


@inlined
def set_end(levels, row, begin, kept):  # type: ignore[no-untyped-def]
    """Where the set that begins in a column ends: the first id is a set by itself, then runs of equal levels are."""
    limit = min(begin + LARGEST_SET, kept) if begin > 0 else 1
    end = begin + 1
    while end < limit and levels[row, end] == levels[row, begin]:
        end += 1
    return end


@inlined
def pop_id(x, words, place, kind, starts, guide, shares, inverse, bases, order, all_starts, all_bases, all_order):  # type: ignore[no-untyped-def]
    """(id, x, place); id -1 where the stream names none."""
    slot = x & ((1 << ID_BITS) - 1)
    which = np.int64(guide[kind, slot >> GUIDE_BITS])
    while starts[kind, which + 1] <= slot:
        which += 1
    offset = slot - np.int64(starts[kind, which])
    share = np.int64(shares[kind, which])
    index = (offset * inverse[kind, which]) >> _RECIPROCAL_BITS
    x, place = rans.refill(share * (x >> ID_BITS) + offset - index * share, words, place)
    if which > 0:
        return np.int64(order[bases[kind, which] + index]), x, place
    symbol, x, place = rans.pop_symbol(x, words, place, all_starts, 0)
    size = np.int64(all_bases[symbol + 1]) - np.int64(all_bases[symbol])
    if size == 0:
        return np.int64(-1), x, place
    index, x, place = rans.pop_uniform(x, words, place, size)
    return np.int64(all_order[all_bases[symbol] + index]), x, place


@inlined
def push_escape(x, words, place, rank_of_all, all_starts, all_bases):  # type: ignore[no-untyped-def]
    """What follows an escape; rank_of_all: the id's place in the order of all ids."""
    symbol = np.int64(0)
    for candidate in range(1, rans.SYMBOLS):
        symbol += all_bases[candidate] <= rank_of_all
    size = np.int64(all_bases[symbol + 1]) - np.int64(all_bases[symbol])
    if size > 1:
        x, place = rans.push_uniform(x, words, place, rank_of_all - np.int64(all_bases[symbol]), size)
    start = np.int64(all_starts[0, symbol])
    return rans.push(x, words, place, start, np.int64(all_starts[0, symbol + 1]) - start, rans.SYMBOL_BITS)


@inlined
def pop_type(x, words, place, starts, given):  # type: ignore[no-untyped-def]
    slot = x & ((1 << rans.SYMBOL_BITS) - 1)
    low, high = 0, starts.shape[1] - 2
    while low < high:
        middle = (low + high + 1) >> 1
        if starts[given, middle] <= slot:
            low = middle
        else:
            high = middle - 1
    if starts.shape[1] == 2:  # one type: nothing was coded
        return low, x, place
    start = np.int64(starts[given, low])
    frequency = np.int64(starts[given, low + 1]) - start
    x, place = rans.refill(rans.advance(x, start, frequency, rans.SYMBOL_BITS), words, place)
    return low, x, place


@compiled
def choose_types(seen, kept, given, costs, given_costs, chosen):  # type: ignore[no-untyped-def]
    """Fills chosen [N]: the type under which the position's ids and the type itself take the fewest bits.

    seen: [N, W] int32 index into the ids seen, -1 for others; given: [N] token classes; costs: [U, C] uint8 and
    given_costs: [classes, C] uint8 in 1/8 bit. An id never seen costs the same under every type.
    """
    types = costs.shape[1]
    total = np.zeros(types, np.int32)
    for row in range(len(seen)):
        for kind in range(types):
            total[kind] = given_costs[given[row], kind]
        for column in range(kept[row]):
            if seen[row, column] >= 0:
                cost = costs[seen[row, column]]
                for kind in range(types):
                    total[kind] += cost[kind]
        best = 0
        for kind in range(1, types):
            if total[kind] < total[best]:
                best = kind
        chosen[row] = best


@compiled
def push_ids(ids, levels, kept, seen, chosen, given, tables, words, place):  # type: ignore[no-untyped-def]
    """Pushes the ids of N rows onto the stack at words[place:] (zeros that may be popped).

    ids: [N, W], the most probable first, then by level, ascending among equal levels.
    Returns (begin, end) of the stream in `words`; begin -1 where `words` was too small.
    """
    (given_starts, starts, _, shares, _, bases, _, ranks, class_of_rank, all_starts, all_bases, _, all_ranks) = tables
    x = np.int64(rans.LOWEST)
    end = place
    left = np.empty(LARGEST_SET, np.int64)
    sets = np.empty(levels.shape[1] + 1, np.int64)
    start_of, share_of = np.empty(levels.shape[1], np.int64), np.empty(levels.shape[1], np.int64)
    for row in range(len(ids) - 1, -1, -1):
        kind = np.int64(chosen[row])
        for column in range(kept[row]):  # looked up before they are needed: the order of a set hangs on the stack
            rank = np.int64(-1)
            if seen[row, column] >= 0:
                rank = np.int64(ranks[kind, seen[row, column]])
            share_of[column] = 0
            if rank >= 0:
                which = np.int64(class_of_rank[rank])
                share_of[column] = shares[kind, which]
                start_of[column] = starts[kind, which] + (rank - bases[kind, which]) * share_of[column]
        count = 0
        sets[0] = 0
        while sets[count] < kept[row]:
            sets[count + 1] = set_end(levels, row, sets[count], np.int64(kept[row]))
            count += 1
        for place_of_set in range(count - 1, -1, -1):
            begin = sets[place_of_set]
            size = sets[place_of_set + 1] - begin
            for index in range(size):
                left[index] = begin + index
            while size > 0:
                pick = np.int64(0)
                if size > 1:
                    pick, x, place = rans.pop_uniform(x, words, place, size)
                    end = max(end, place)
                column = left[pick]
                size -= 1
                for index in range(pick, size):
                    left[index] = left[index + 1]
                if share_of[column] == 0:
                    rank_of_all = np.int64(all_ranks[ids[row, column]])
                    x, place = push_escape(x, words, place, rank_of_all, all_starts, all_bases)
                    x, place = rans.push(x, words, place, np.int64(0), np.int64(shares[kind, 0]), ID_BITS)
                else:
                    x, place = rans.push(x, words, place, start_of[column], share_of[column], ID_BITS)
        if given_starts.shape[1] > 2:
            start = np.int64(given_starts[given[row], kind])
            frequency = np.int64(given_starts[given[row], kind + 1]) - start
            x, place = rans.push(x, words, place, start, frequency, rans.SYMBOL_BITS)
    if place > len(words):
        return -1, -1
    return rans.finish(x, words, place), end


@compiled
def pop_ids(words, levels, kept, given, tables, ids):  # type: ignore[no-untyped-def]
    """The inverse of `push_ids`, but for the order of equal levels: fills ids; writes into `words`.

    Returns whether the stream was whole.
    """
    (given_starts, starts, guide, shares, inverse, bases, order, _, _, all_starts, all_bases, all_order, _) = tables
    x, place = rans.begin(words)
    for row in range(len(levels)):
        kind, x, place = pop_type(x, words, place, given_starts, given[row])
        begin = 0
        lowest = np.int64(0)
        while begin < kept[row]:
            end = set_end(levels, row, begin, np.int64(kept[row]))
            for column in range(begin, end):
                found, x, place = pop_id(
                    x, words, place, kind, starts, guide, shares, inverse, bases, order,
                    all_starts, all_bases, all_order,
                )  # fmt: skip
                ids[row, column] = found
                lowest = min(lowest, found)
                if column > begin:
                    index = np.int64(0)
                    for before in range(begin, column):
                        index += ids[row, before] < found
                    x, place = rans.push_uniform(x, words, place, index, np.int64(column - begin + 1))
            begin = end
        if lowest < 0 or place > len(words):
            return False
    return rans.is_whole(x, words, place)
