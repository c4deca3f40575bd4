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
from distributed_kd.cache.codecs.compiled import compiled, counting_nothing, index, inlined

ID_BITS = 20
CLASSES = 32  # class 0 is the escape
GUIDE_BITS = 12
LARGEST_SET = 256  # longer runs of one level are several sets, so that keeping them sorted stays cheap
_RECIPROCAL_BITS = 40
_START, _SHARE, _RECIPROCAL, _BASE = range(4)  # of a class
BLOCK = 16  # most sets are smaller


def classes_of(starts: np.ndarray, shares: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """[C, 33, 4] int64: what a decoder asks of a type's class, side by side so that one wait is for all of it.

    starts, bases: [C, 33], where its slots and its ids begin; shares: [C, 32], the slots of each of its ids. The
    reciprocal r is such that (offset * r) >> 40 == offset // share for offset < 2^20.
    """
    classes = np.ones((*starts.shape, 4), np.int64)
    classes[:, :, _START], classes[:, :, _BASE] = starts, bases
    classes[:, :-1, _SHARE] = shares
    classes[:, :, _RECIPROCAL] = ((1 << _RECIPROCAL_BITS) - 1) // classes[:, :, _SHARE] + 1
    return classes


@inlined
def set_end(levels, row, begin, kept):  # type: ignore[no-untyped-def]
    """Where the set that begins in a column ends: the first id is a set by itself, then runs of equal levels are."""
    limit = min(begin + LARGEST_SET, kept) if begin > 0 else 1
    end = begin + 1
    while end < limit and levels[row, end] == levels[row, begin]:
        end += 1
    return end


@inlined
def pop_id(x, words, place, end, kind, tables):  # type: ignore[no-untyped-def]
    """(id, x, place); id -1 where the stream names none."""
    (_, classes, guide, order, _, _, all_starts, all_bases, all_order, _) = tables
    slot = x & ((1 << ID_BITS) - 1)
    which = np.int64(guide[index(kind), index(slot >> GUIDE_BITS)])
    while classes[index(kind), index(which + 1), _START] <= slot:
        which += 1
    offset = slot - classes[index(kind), index(which), _START]
    share = classes[index(kind), index(which), _SHARE]
    number = (offset * classes[index(kind), index(which), _RECIPROCAL]) >> _RECIPROCAL_BITS
    x, place = rans.refill(share * (x >> ID_BITS) + offset - number * share, words, place, end)
    if which > 0:
        return np.int64(order[index(classes[index(kind), index(which), _BASE] + number)]), x, place
    symbol, x, place = rans.pop_symbol(x, words, place, end, all_starts, 0)
    size = np.int64(all_bases[symbol + 1]) - np.int64(all_bases[symbol])
    if size == 0:
        return np.int64(-1), x, place
    number, x, place = rans.pop_uniform(x, words, place, end, size)
    return np.int64(all_order[all_bases[symbol] + number]), x, place


@inlined
def push_escape(x, words, place, top, end, rank_of_all, all_starts, all_bases):  # type: ignore[no-untyped-def]
    """What follows an escape; rank_of_all: the id's place in the order of all ids."""
    symbol = np.int64(0)
    for candidate in range(1, rans.SYMBOLS):
        symbol += all_bases[candidate] <= rank_of_all
    size = np.int64(all_bases[symbol + 1]) - np.int64(all_bases[symbol])
    if size > 1:
        x, place = rans.push_uniform(x, words, place, top, end, rank_of_all - np.int64(all_bases[symbol]), size)
    start = np.int64(all_starts[0, symbol])
    return rans.push(x, words, place, top, end, start, np.int64(all_starts[0, symbol + 1]) - start, rans.SYMBOL_BITS)


@inlined
def pop_type(x, words, place, end, starts, given):  # type: ignore[no-untyped-def]
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
    x, place = rans.refill(rans.advance(x, start, frequency, rans.SYMBOL_BITS), words, place, end)
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
    (given_starts, classes, _, _, ranks, class_of_rank, all_starts, all_bases, _, all_ranks) = tables
    x = np.int64(rans.LOWEST)
    top, end = np.int64(rans.HEAD), np.int64(len(words))
    deepest = place
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
                first = classes[kind, which]
                share_of[column] = first[_SHARE]
                start_of[column] = first[_START] + (rank - first[_BASE]) * first[_SHARE]
        count = 0
        sets[0] = 0
        while sets[count] < kept[row]:
            sets[count + 1] = set_end(levels, row, sets[count], np.int64(kept[row]))
            count += 1
        for place_of_set in range(count - 1, -1, -1):
            begin = sets[place_of_set]
            size = sets[place_of_set + 1] - begin
            for member in range(size):
                left[member] = begin + member
            while size > 0:
                pick = np.int64(0)
                if size > 1:
                    pick, x, place = rans.pop_uniform(x, words, place, end, size)
                    deepest = max(deepest, place)
                column = left[pick]
                size -= 1
                for member in range(pick, size):
                    left[member] = left[member + 1]
                if share_of[column] == 0:
                    rank_of_all = np.int64(all_ranks[ids[row, column]])
                    x, place = push_escape(x, words, place, top, end, rank_of_all, all_starts, all_bases)
                    x, place = rans.push(x, words, place, top, end, np.int64(0), classes[kind, 0, _SHARE], ID_BITS)
                else:
                    x, place = rans.push(x, words, place, top, end, start_of[column], share_of[column], ID_BITS)
        if given_starts.shape[1] > 2:
            start = np.int64(given_starts[given[row], kind])
            frequency = np.int64(given_starts[given[row], kind + 1]) - start
            x, place = rans.push(x, words, place, top, end, start, frequency, rans.SYMBOL_BITS)
    if place > len(words):
        return -1, -1
    return rans.finish(x, words, place), deepest


@inlined
def pop_member(x, words, place, top, end, kind, tables, levels, ids, at, column, size):  # type: ignore[no-untyped-def]
    """(id, x, place, size) of the place `at` of levels and ids, which is in `column` of its row; size: how many ids of
    its set come before it, from that of the column before. Looks at up to `BLOCK` ids after it, whatever they are."""
    found, x, place = pop_id(x, words, place, end, kind, tables)
    ids[index(at)] = found
    size += 1
    if (column <= 1) | (levels[index(at)] != levels[index(max(at, 1) - 1)]) | (size == LARGEST_SET):
        size = np.int64(0)
    if size > 0:
        rank = np.int64(0)
        for member in range(BLOCK):  # all of a block, by signs: the compiler makes a few wide instructions of it
            rank -= ((ids[index(at - size + member)] - found) >> 63) & ((member - size) >> 63)
        for member in range(BLOCK, size):
            rank += ids[index(at - size + member)] < found
        x, place = rans.push_uniform(x, words, place, top, end, rank, size + 1)
    return found, x, place, size


@counting_nothing
def pop_ids(words, word_ends, ends, levels, kept, given, width, tables, ids):  # type: ignore[no-untyped-def]
    """The inverse of `push_ids` for many sequences, but for the order of equal levels: fills ids, writes into `words`.

    Sequence n has the words from word_ends[n] and the rows from ends[n]; levels: [N W]; ids: [N W + BLOCK], the last of
    which are spare. Returns the first sequence that is damaged, or -1.

    Each step waits for the one before and for memory, so two sequences, a and b, take turns: one goes on while the
    other waits.
    """
    given_starts = tables[0]
    for a in range(0, len(ends) - 1, 2):
        b = min(a + 1, len(ends) - 2)
        top_a, end_a, rows_a = word_ends[a] + rans.HEAD, word_ends[a + 1], ends[a + 1] - ends[a]
        top_b, end_b, rows_b = word_ends[b] + rans.HEAD, word_ends[b + 1], (ends[b + 1] - ends[b] if b > a else 0)
        x_a, place_a = rans.begin(words, top_a, end_a)
        x_b, place_b = rans.begin(words, top_b, end_b)
        size_a = size_b = lowest_a = lowest_b = np.int64(0)
        for step in range(max(rows_a, rows_b)):
            row_a, row_b = ends[a] + step, ends[b] + step
            kind_a = kind_b = kept_a = kept_b = np.int64(0)
            if step < rows_a:
                kind_a, x_a, place_a = pop_type(x_a, words, place_a, end_a, given_starts, given[row_a])
                kept_a = np.int64(kept[row_a])
            if step < rows_b:
                kind_b, x_b, place_b = pop_type(x_b, words, place_b, end_b, given_starts, given[row_b])
                kept_b = np.int64(kept[row_b])
            for column in range(max(kept_a, kept_b)):
                if column < kept_a:
                    found, x_a, place_a, size_a = pop_member(
                        x_a, words, place_a, top_a, end_a, kind_a, tables, levels, ids, row_a * width + column, column,
                        size_a,
                    )  # fmt: skip
                    lowest_a = min(lowest_a, found)
                if column < kept_b:
                    found, x_b, place_b, size_b = pop_member(
                        x_b, words, place_b, top_b, end_b, kind_b, tables, levels, ids, row_b * width + column, column,
                        size_b,
                    )  # fmt: skip
                    lowest_b = min(lowest_b, found)
            if lowest_a < 0 or place_a > end_a:
                return a
            if lowest_b < 0 or place_b > end_b:
                rows_b = np.int64(0)  # what is left of a may be damaged too, and comes first
        if not rans.is_whole(x_a, words, place_a, end_a):
            return a
        if b > a and (lowest_b < 0 or not rans.is_whole(x_b, words, place_b, end_b)):
            return b
    return -1
