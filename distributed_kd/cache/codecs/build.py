"""Makes the code tables of a cache from a sample of its positions.

The sample decides everything: the quantiser's step, how often each symbol occurs in each context, and the types of
positions, which are clusters found by assigning each position to the type under which its ids take the fewest bits and
counting again. Types start from positions spread evenly over the sample, ties go to the lower number, and costs are
whole eighths of a bit, so the same sample gives the same bytes.

More positions give better tables: the ids of K = 64 took 4.5% fewer bytes with 147 thousand positions than with 25.

Shapes: N positions, W kept ids, V vocabulary, U ids seen, C types.
"""

from __future__ import annotations

import numpy as np

from distributed_kd.cache.codecs import ids as id_stream
from distributed_kd.cache.codecs import levels as level_stream
from distributed_kd.cache.codecs import quantiser as quantisers
from distributed_kd.cache.codecs import rans, tables, tail
from distributed_kd.cache.codecs.compiled import compiled
from distributed_kd.cache.soft_targets import SoftTargets

_ROUNDS = 12
_POSITIONS_PER_TYPE = 64
_SEED_SMOOTHING = 20  # the first round's types are single positions: mixed less, so that they attract
_OFTEN = 4  # a token seen less often shares the class of unseen ones


def build_tables(
    sample: SoftTargets,
    tokens: np.ndarray,
    vocabulary_size: int,
    draws: int = 0,
    kl_budget: float = quantisers.KL_BUDGET,
) -> bytes:
    """The table file for a cache whose positions are like `sample`. Raises `ValueError` for what cannot be cached.

    tokens: [N] the token at each position; draws: how many ids were drawn a position, at the only temperature, where
    targets are drawn, else 0; kl_budget: nats a position that levels may add on the sample (drawn ids are exact).
    The cache keeps at most as many ids a position as the sample is wide.
    """
    width = sample.ids.shape[1]
    if not 1 <= width <= vocabulary_size <= tables.LARGEST_VOCABULARY:
        raise ValueError(
            f"{width} ids a position of a vocabulary of {vocabulary_size} cannot be cached; "
            f"at least 1 and at most the vocabulary can, of at most {tables.LARGEST_VOCABULARY}"
        )
    if sample.ids.size > tables.LARGEST_COUNT:
        raise ValueError(f"a sample of {len(sample)} positions is more than code tables are made from; take fewer")
    quantiser = quantisers.of_draws(draws, sample.temperatures[0]) if draws else quantisers.fit(sample, kl_budget)
    levels = quantiser.levels(sample)
    steps = tail.quantise(sample.tail_odds)
    kinds, counts, seen = _types(sample.ids, levels >= 0, tokens, vocabulary_size)

    columns = counts > 0
    gaps = [np.diff(np.flatnonzero(columns[:, kind]), prepend=-1) for kind in range(counts.shape[1])]
    class_tokens, classes, given = _token_classes(tokens, kinds, counts.shape[1], vocabulary_size)
    header = {
        "width": width, "vocabulary_size": vocabulary_size, "temperatures": [float(t) for t in sample.temperatures],
        "reference": quantiser.reference, "exponent": quantiser.exponent, "step": quantiser.step,
        "draws": quantiser.draws, "dense_top": quantiser.dense_top, "positions": len(sample),
    }  # fmt: skip
    arrays = {
        "values": quantiser.values,
        "weights": quantiser.weights,
        "within": quantiser.within,
        "odds_mass": quantiser.odds_mass,
        "tail_counts": _tail_counts(steps),
        "level_counts": _level_counts(quantiser, levels, steps),
        "seen_ids": seen,
        "type_sizes": columns.sum(axis=0),
        "type_gaps": np.concatenate(gaps),
        "type_counts": counts.T[columns.T],
        "class_tokens": class_tokens,
        "class_of_token": classes,
        "given_counts": given,
    }
    return tables.pack(header, {name: _smallest(array) for name, array in arrays.items()})


def _smallest(array: np.ndarray) -> np.ndarray:
    """Little-endian, in the narrowest whole numbers that hold the array."""
    lowest, highest = int(array.min(initial=0)), int(array.max(initial=0))
    for kind in ("<u1", "<u2", "<u4", "<i4"):
        if np.iinfo(kind).min <= lowest and highest <= np.iinfo(kind).max:
            return np.ascontiguousarray(array.astype(kind))
    raise ValueError("a count in the sample is 2^31 or more")


@compiled
def _count(events, count, counts):  # type: ignore[no-untyped-def]
    for event in range(count):
        if events[event, 0] >= 0:
            counts[events[event, 0], events[event, 1]] += 1


def _tail_counts(steps: np.ndarray) -> np.ndarray:
    events = np.empty((3 * steps.size, 2), np.int32)
    counts = np.zeros((tail.contexts(steps.shape[1]), rans.SYMBOLS), np.int64)
    _count(events, tail.tail_events(steps, events), counts)
    return counts


def _level_counts(quantiser: quantisers.Quantiser, levels: np.ndarray, steps: np.ndarray) -> np.ndarray:
    counts = np.zeros((level_stream.CONTEXTS, rans.SYMBOLS), np.int64)
    falling = np.ascontiguousarray(-np.sort(-levels, axis=1))
    masses = quantiser.masses(steps)
    for begin in range(0, len(levels), 4096):
        rows = falling[begin : begin + 4096]
        events = np.empty((level_stream.most_events(*rows.shape), 2), np.int32)
        count = level_stream.level_events(
            rows, (rows >= 0).sum(axis=1), masses[begin : begin + 4096], quantiser.weights, quantiser.within,
            quantiser.dense_top, quantiser.draws > 0, events,
        )  # fmt: skip
        _count(events, count, counts)
    return counts


def _types(
    ids: np.ndarray, kept: np.ndarray, tokens: np.ndarray, vocabulary: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(type of each position [N], how often each id occurs in each type [U, C], the ids seen [U], ascending)."""
    seen = np.unique(ids[kept])
    if len(seen) and not 0 <= seen[0] <= seen[-1] < vocabulary:
        raise ValueError(f"ids from {seen[0]} to {seen[-1]} are not of a vocabulary of {vocabulary}")
    index = np.full(vocabulary, -1, np.int32)
    index[seen] = np.arange(len(seen), dtype=np.int32)
    rows = np.where(kept, index[np.maximum(ids, 0)], -1).astype(np.int32)
    positions = len(ids)
    types = 1
    most = min(tables.LARGEST_TYPES, positions // _POSITIONS_PER_TYPE, tables.LARGEST_CELLS // max(1, len(seen)))
    while types * 2 <= most:
        types *= 2
    kinds = np.zeros(positions, np.int32)
    counts = np.zeros((len(seen), types), np.int64)
    if types == 1:
        np.add.at(counts, (rows[kept], 0), 1)
        return kinds, counts, seen

    everywhere = np.bincount(rows[kept], minlength=len(seen))
    seeds = (np.arange(types, dtype=np.int64) * positions + positions // 2) // types
    for kind, seed in enumerate(seeds):
        counts[rows[seed][kept[seed]], kind] += 1
    width = np.full(positions, ids.shape[1], np.int32)
    no_class = np.zeros(positions, np.int32)
    sizes = np.ones(types, np.int64)
    for turn in range(_ROUNDS):
        smoothing = tables.SMOOTHING if turn else _SEED_SMOOTHING
        costs = _type_costs(counts, everywhere, smoothing)
        rareness = np.rint(8 * np.log2((sizes.sum() + types) / (sizes + 1))).astype(np.uint8)[None]
        id_stream.choose_types(rows, width, no_class, costs, rareness, kinds)
        counts[:] = 0
        np.add.at(counts, (rows[kept], np.broadcast_to(kinds[:, None], rows.shape)[kept]), 1)
        sizes = np.bincount(kinds, minlength=types)
    return kinds, counts, seen


def _type_costs(counts: np.ndarray, everywhere: np.ndarray, smoothing: int) -> np.ndarray:
    """[U, C] uint8, in 1/8 bit."""
    mixed = counts * int(everywhere.sum()) + smoothing * everywhere[:, None]
    scale = (counts.sum(axis=0) + smoothing) * int(everywhere.sum())
    return np.clip(np.rint(8 * np.log2(scale / mixed)), 0, 255).astype(np.uint8)


def _token_classes(
    tokens: np.ndarray, kinds: np.ndarray, types: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens that have a class, their classes, counts [C + 1, C] of types by class).

    A token's class is the type it stands at most often; tokens seen rarely or never are of class C.
    """
    pairs, times = np.unique(tokens.astype(np.int64) * types + kinds, return_counts=True)
    order = np.lexsort((pairs, -times, pairs // types))
    own, first = np.unique((pairs // types)[order], return_index=True)
    often = np.bincount(tokens, minlength=vocabulary)[own] >= _OFTEN
    class_tokens, classes = own[often], (pairs % types)[order][first][often]
    class_of = np.full(vocabulary, types)
    class_of[class_tokens] = classes
    counts = np.zeros((types + 1, types), np.int64)
    np.add.at(counts, (class_of[tokens], kinds), 1)
    return class_tokens, classes, counts
