"""Which ids a position keeps, as a stream: a type of position, then for each level the *set* of ids at that level.

A position is of one of C types, found when the tables are made by clustering positions that keep similar ids; the
type is coded given the class of the current token, the ids given the type. A type gives ids of about the same
frequency one class of equal shares (at most 31 classes, and an escape into the order of all ids), so that a symbol
is found by comparing with 32 numbers and one multiplication.

The order of equal levels carries nothing, so it is not paid for: before an id is pushed the encoder pops from its own
stack which of the set's remaining ids it shall be, and the decoder pushes that choice back, having seen the id's
place among those it has (bits back: Townsend et al. 2019; for sets: Severo et al. 2022). A set of n saves log2(n!)
bits. Only the first set says which of its ids comes first, so that the most probable id of a position survives.

Shapes: N positions, W ids kept at most, V vocabulary, C types, U ids seen when the tables were made.
"""

from __future__ import annotations

import numpy as np

from distributed_kd.cache.codecs import rans
from distributed_kd.cache.codecs.compiled import compiled

ID_BITS = 20
CLASSES = 32  # class 0 is the escape
LARGEST_SET = 256  # longer runs of one level are several sets, so that keeping them sorted stays cheap
_RECIPROCAL_BITS = 40


def reciprocals(shares: np.ndarray) -> np.ndarray:
    """r such that (offset * r) >> 40 == offset // share for offset < 2^20."""
    return ((1 << _RECIPROCAL_BITS) + shares.astype(np.int64) - 1) // np.maximum(shares, 1)


@compiled
def run_length(levels, begin, kept):  # type: ignore[no-untyped-def]
    end = begin + 1
    while end < kept and levels[end] == levels[begin]:
        end += 1
    return end - begin


@compiled
def pop_id(x, words, place, starts, shares, inverse, bases, order, all_starts, all_bases, all_order):  # type: ignore[no-untyped-def]
    """(id, x, place); id -1 where the stream names none."""
    slot = x & ((1 << ID_BITS) - 1)
    which = np.int64(0)
    for candidate in range(1, CLASSES):
        which += starts[candidate] <= slot
    offset = slot - np.int64(starts[which])
    share = np.int64(shares[which])
    index = (offset * inverse[which]) >> _RECIPROCAL_BITS
    x, place = rans.refill(share * (x >> ID_BITS) + offset - index * share, words, place)
    if which > 0:
        return np.int64(order[bases[which] + index]), x, place
    symbol, x, place = rans.pop_symbol(x, words, place, all_starts)
    size = np.int64(all_bases[symbol + 1]) - np.int64(all_bases[symbol])
    if size == 0:
        return np.int64(-1), x, place
    index, x, place = rans.pop_uniform(x, words, place, size)
    return np.int64(all_order[all_bases[symbol] + index]), x, place


@compiled
def push_id(x, words, place, rank, rank_of_all, starts, shares, bases, all_starts, all_bases):  # type: ignore[no-untyped-def]
    """rank: the id's place in its type's order, -1 where it has none; rank_of_all: its place in the order of all ids."""
    if rank >= 0:
        which = np.int64(0)
        for candidate in range(2, CLASSES + 1):
            which += bases[candidate] <= rank
        which += 1
        share = np.int64(shares[which])
        return rans.push(x, words, place, np.int64(starts[which]) + (rank - bases[which]) * share, share, ID_BITS)
    symbol = np.int64(0)
    for candidate in range(1, rans.SYMBOLS):
        symbol += all_bases[candidate] <= rank_of_all
    size = np.int64(all_bases[symbol + 1]) - np.int64(all_bases[symbol])
    if size > 1:
        x, place = rans.push_uniform(x, words, place, rank_of_all - np.int64(all_bases[symbol]), size)
    start = np.int64(all_starts[symbol])
    x, place = rans.push(x, words, place, start, np.int64(all_starts[symbol + 1]) - start, rans.SYMBOL_BITS)
    return rans.push(x, words, place, np.int64(0), np.int64(shares[0]), ID_BITS)


@compiled
def pop_type(x, words, place, starts):  # type: ignore[no-untyped-def]
    slot = x & ((1 << rans.SYMBOL_BITS) - 1)
    low, high = 0, len(starts) - 2
    while low < high:
        middle = (low + high + 1) >> 1
        if starts[middle] <= slot:
            low = middle
        else:
            high = middle - 1
    if high == 0 and len(starts) == 2:  # one type: nothing was coded
        return low, x, place
    start = np.int64(starts[low])
    x, place = rans.refill(
        rans.advance(x, start, np.int64(starts[low + 1]) - start, rans.SYMBOL_BITS), words, place
    )
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
def push_ids(ids, levels, kept, first, seen, chosen, given, tables, words, place):  # type: ignore[no-untyped-def]
    """Pushes the ids of N rows onto the stack at words[place:] (zeros that may be popped); returns the stream's bounds.

    ids: [N, W] sorted within runs of equal levels; first: [N] which of its run the most probable id is.
    Returns (begin, end) of the stream in `words`; begin -1 where `words` was too small.
    """
    (given_starts, starts, shares, _, bases, order, ranks, all_starts, all_bases, all_order, all_ranks) = tables
    x = np.int64(rans.LOWEST)
    end = place
    left = np.empty(LARGEST_SET, np.int64)
    for row in range(len(ids) - 1, -1, -1):
        kind = np.int64(chosen[row])
        stop = np.int64(kept[row])
        while stop > 0:
            begin = stop - 1
            while begin > 0 and levels[row, begin - 1] == levels[row, stop - 1]:
                begin -= 1
            if begin == 0 and stop > 1:
                x, place = rans.push_uniform(x, words, place, np.int64(first[row]), stop)
            chunk_end = stop
            while chunk_end > begin:
                chunk = begin + ((chunk_end - begin - 1) // LARGEST_SET) * LARGEST_SET
                size = chunk_end - chunk
                for index in range(size):
                    left[index] = chunk + index
                while size > 0:
                    pick = np.int64(0)
                    if size > 1:
                        pick, x, place = rans.pop_uniform(x, words, place, size)
                        if place > len(words):
                            return -1, -1
                        end = max(end, place)
                    column = left[pick]
                    size -= 1
                    for index in range(pick, size):
                        left[index] = left[index + 1]
                    rank = np.int64(-1)
                    if seen[row, column] >= 0:
                        rank = np.int64(ranks[kind, seen[row, column]])
                    x, place = push_id(
                        x, words, place, rank, np.int64(all_ranks[ids[row, column]]),
                        starts[kind], shares[kind], bases[kind], all_starts, all_bases,
                    )  # fmt: skip
                    if place > len(words):
                        return -1, -1
                chunk_end = chunk
            stop = begin
        if given_starts.shape[1] > 2:
            start = np.int64(given_starts[given[row], kind])
            frequency = np.int64(given_starts[given[row], kind + 1]) - start
            x, place = rans.push(x, words, place, start, frequency, rans.SYMBOL_BITS)
            if place > len(words):
                return -1, -1
    return rans.finish(x, words, place), end


@compiled
def pop_ids(words, levels, kept, given, tables, ids):  # type: ignore[no-untyped-def]
    """The inverse of `push_ids`: fills ids; writes into `words`. Returns whether the stream was whole."""
    (given_starts, starts, shares, inverse, bases, order, _, all_starts, all_bases, all_order, _) = tables
    x, place = rans.begin(words)
    for row in range(len(levels)):
        if place > len(words):
            return False
        kind, x, place = pop_type(x, words, place, given_starts[given[row]])
        type_starts, type_shares = starts[kind], shares[kind]
        type_inverse, type_bases = inverse[kind], bases[kind]
        row_ids = ids[row]
        begin = 0
        while begin < kept[row]:
            run = run_length(levels[row], begin, kept[row])
            for chunk in range(begin, begin + run, LARGEST_SET):
                for size in range(1, min(LARGEST_SET, begin + run - chunk) + 1):
                    found, x, place = pop_id(
                        x, words, place, type_starts, type_shares, type_inverse, type_bases, order,
                        all_starts, all_bases, all_order,
                    )  # fmt: skip
                    if found < 0 or place > len(words):
                        return False
                    index = size - 1
                    while index > 0 and row_ids[chunk + index - 1] > found:
                        row_ids[chunk + index] = row_ids[chunk + index - 1]
                        index -= 1
                    row_ids[chunk + index] = found
                    if size > 1:
                        x, place = rans.push_uniform(x, words, place, np.int64(index), np.int64(size))
            if begin == 0 and run > 1:
                first, x, place = rans.pop_uniform(x, words, place, np.int64(run))
                found = row_ids[first]
                for index in range(first, 0, -1):
                    row_ids[index] = row_ids[index - 1]
                row_ids[0] = found
            begin += run
    return rans.is_whole(x, words, place)
