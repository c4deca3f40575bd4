"""Code tables: what the compact codec knows before it sees a shard.

Made once for a cache, from a sample of its own positions (`build.py`), kept beside the manifest under its digest, and
needed to read any shard. The file is a magic number and one zstd frame: a JSON header, then arrays in the order that
the header lists. It holds counts; what coders need follows from them by whole-number arithmetic, the same everywhere.

Shapes: V vocabulary, U ids seen in the sample, C types, T + 1 token classes.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import zstandard

from distributed_kd.cache.codecs import ids, levels, rans, tail
from distributed_kd.cache.codecs.quantiser import Quantiser

MAGIC = b"dkd-tables-1\n"
LARGEST_BYTES = 1 << 29
SPARE_BYTES, MOST_RATIO = 4 << 20, 64  # a file of n bytes may hold so many and n times so many
_ARRAYS = {
    "values", "weights", "within", "odds_mass", "tail_counts", "level_counts", "seen_ids", "type_sizes", "type_gaps",
    "type_counts", "class_tokens", "class_of_token", "given_counts",
}  # fmt: skip
_WHOLE_NUMBERS = re.compile("[<>|][iu][1248]")  # numpy parses other names of types as Python
LARGEST_VOCABULARY = 1 << 20
LARGEST_WIDTH = 1 << 20
LARGEST_TYPES = 256
LARGEST_CELLS = 1 << 26  # ids seen times types
LARGEST_COUNT = 1 << 30  # ids kept in the sample; products of two such sums stay below 2^63
SMOOTHING = 300  # a type's ids are mixed with this many of the whole sample's
SMALLEST_SHARE = 16  # of 2^20; less frequent ids take the escape
_TYPE_WEIGHT, _CONTEXT_WEIGHT = 8, 4


@dataclass(frozen=True)
class Tables:
    """`coder` and the `starts` arrays are what the kernels take; `seen_index` maps an id to its place in U, or -1."""

    width: int  # ids kept at most: W
    vocabulary_size: int
    temperatures: tuple[float, ...]
    quantiser: Quantiser
    tail_starts: np.ndarray  # [contexts, 33] int32
    level_starts: np.ndarray  # [contexts, 33] int32
    token_classes: np.ndarray  # [V] int32
    seen_index: np.ndarray  # [V] int32
    costs: np.ndarray  # [U, C] uint8, 1/8 bit
    given_costs: np.ndarray  # [T + 1, C] uint8, 1/8 bit
    coder: tuple[np.ndarray, ...]


def pack(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    listed = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    head = json.dumps(header | {"arrays": listed}, sort_keys=True, separators=(",", ":")).encode()
    body = struct.pack("<I", len(head)) + head + b"".join(array.tobytes() for array in arrays.values())
    return MAGIC + zstandard.ZstdCompressor(level=19, write_checksum=True).compress(body)


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Raises `ValueError` when `data` is not a table file."""
    if not data.startswith(MAGIC):
        raise ValueError("not a code table file")
    try:
        size = zstandard.frame_content_size(data[len(MAGIC) :])
        most = min(LARGEST_BYTES, SPARE_BYTES + MOST_RATIO * len(data))
        if not 4 <= size <= most:
            raise ValueError(f"{len(data)} bytes of code tables that would become {size}; at most {most} are read")
        # The content is allocated as the frame says, which was bounded; no more is ever written.
        body = zstandard.ZstdDecompressor().decompress(data[len(MAGIC) :], allow_extra_data=False)
        (length,) = struct.unpack_from("<I", body)
        header = json.loads(body[4 : 4 + length])
        arrays, place = {}, 4 + length
        for name, kind, shape in header.pop("arrays"):
            if name not in _ARRAYS or name in arrays:
                raise ValueError(f"an array {str(name)[:40]} that is unknown, or there twice")
            if not _WHOLE_NUMBERS.fullmatch(kind) or any(not isinstance(side, int) or side < 0 for side in shape):
                raise ValueError(f"array {name} is not one of whole numbers")
            dtype = np.dtype(kind)
            count = int(np.prod([int(side) for side in shape], dtype=object))
            if place + count * dtype.itemsize > len(body):
                raise ValueError(f"array {name} is cut short")
            arrays[name] = np.frombuffer(body, dtype, count, place).reshape(shape)
            place += count * dtype.itemsize
    except (zstandard.ZstdError, struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"damaged code tables: {error}") from error
    return header, arrays


@lru_cache(maxsize=4)
def parse(data: bytes) -> Tables:
    """The tables of a file. Raises `ValueError` when they are not good ones."""
    header, arrays = unpack(data)
    try:
        return _parse(header, arrays)
    except (KeyError, TypeError, IndexError, OverflowError, AttributeError) as error:
        raise ValueError(f"damaged code tables: {error!r}") from error


def _parse(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Tables:
    vocabulary, width = int(header["vocabulary_size"]), int(header["width"])
    temperatures = tuple(float(t) for t in header["temperatures"])
    types = arrays["type_sizes"].shape[0]
    seen = arrays["seen_ids"].astype(np.int64)
    quantiser = Quantiser(
        int(header["reference"]), float(header["exponent"]), float(header["step"]), int(header["draws"]),
        int(header["dense_top"]), arrays["values"].astype(np.int32), arrays["weights"].astype(np.int64),
        arrays["within"].astype(np.int32), arrays["odds_mass"].astype(np.int32),
    )  # fmt: skip
    _check(vocabulary, width, temperatures, types, seen, quantiser, arrays)

    counts = np.zeros((len(seen), types), np.int32)
    place = 0
    for kind, size in enumerate(arrays["type_sizes"].astype(np.int64)):
        rows = np.cumsum(arrays["type_gaps"][place : place + size].astype(np.int64)) - 1
        if len(rows) and rows[-1] >= len(seen):
            raise ValueError("damaged code tables: an id that was not seen has a type")
        counts[rows, kind] = arrays["type_counts"][place : place + size].astype(np.int64)
        place += size

    seen_index = np.full(vocabulary, -1, np.int32)
    seen_index[seen] = np.arange(len(seen), dtype=np.int32)
    token_classes = np.full(vocabulary, types, np.int32)
    token_classes[arrays["class_tokens"].astype(np.int64)] = arrays["class_of_token"].astype(np.int32)
    if token_classes.max(initial=0) > types:
        raise ValueError("damaged code tables: a token of no class")
    given_starts = starts_of(_given(arrays["given_counts"].astype(np.int64)))
    coder, costs = _coder(counts, seen, vocabulary)
    given_costs = np.rint(8 * (rans.SYMBOL_BITS - np.log2(np.diff(given_starts, axis=1))))
    return Tables(
        width, vocabulary, temperatures, quantiser,
        rans.with_guide(starts_of(_smooth(arrays["tail_counts"].astype(np.int64), _tail_groups(len(temperatures))))),
        rans.with_guide(starts_of(_smooth(arrays["level_counts"].astype(np.int64), _level_groups()))),
        token_classes, seen_index, costs, given_costs.astype(np.uint8), (given_starts, *coder),
    )  # fmt: skip


def _check(
    vocabulary: int, width: int, temperatures: tuple[float, ...], types: int, seen: np.ndarray, quantiser: Quantiser,
    arrays: dict[str, np.ndarray],
) -> None:  # fmt: skip
    highest = len(quantiser.values) - 1
    ascending = np.array_equal(quantiser.weights, np.sort(quantiser.weights))
    fits = (
        1 <= vocabulary <= LARGEST_VOCABULARY
        and 1 <= width <= min(LARGEST_WIDTH, vocabulary)
        and 1 <= len(temperatures) <= 64
        and 1 <= types <= LARGEST_TYPES
        and len(seen) <= vocabulary
        and len(seen) * types <= LARGEST_CELLS
        and (len(seen) == 0 or (seen.min() >= 0 and seen.max() < vocabulary and (np.diff(seen) > 0).all()))
        and 0 <= quantiser.reference < len(temperatures)
        and 1 <= highest <= levels.HIGHEST_LEVEL
        and 0 <= quantiser.draws <= highest
        and quantiser.weights.shape == (highest + 1,)
        and ascending
        and quantiser.weights[0] >= 0
        and quantiser.weights[-1] <= 2 << levels.MASS_BITS
        and (quantiser.draws == 0 or quantiser.weights[1] >= 1)
        and 0 <= quantiser.dense_top <= min(highest, levels.DENSE_LEVELS - 1)
        and quantiser.within.shape == (1025,)
        and 0 <= quantiser.within.min() <= quantiser.within.max() <= highest
        and quantiser.odds_mass.shape == (2048,)
        and 0 <= quantiser.odds_mass.min() <= quantiser.odds_mass.max() <= 1 << levels.MASS_BITS
        and arrays["tail_counts"].shape == (tail.contexts(len(temperatures)), rans.SYMBOLS)
        and arrays["level_counts"].shape == (levels.CONTEXTS, rans.SYMBOLS)
        and arrays["given_counts"].shape == (types + 1, types)
        and len(arrays["type_gaps"]) == len(arrays["type_counts"]) == int(arrays["type_sizes"].sum(dtype=np.int64))
        and len(arrays["class_tokens"]) == len(arrays["class_of_token"])
        and int(arrays["type_counts"].astype(np.int64).sum()) <= LARGEST_COUNT
        and all((array.astype(np.int64) >= 0).all() for name, array in arrays.items() if name != "values")
        and all((array.astype(np.int64) < 1 << 31).all() for name, array in arrays.items())
    )
    if not fits:
        raise ValueError("damaged code tables: sizes or values out of bounds")


def starts_of(weights: np.ndarray) -> np.ndarray:
    """[contexts, n] whole weights >= 0 to [contexts, n + 1] int32: the first of 2^15 slots of each symbol, and 2^15.

    Every symbol gets a slot; what rounding leaves over goes to the context's most frequent symbol.
    """
    symbols = weights.shape[1]
    slots = 1 << rans.SYMBOL_BITS
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    shares = weights * (slots - symbols) // total + 1
    shares[np.arange(len(weights)), np.argmax(weights, axis=1)] += slots - shares.sum(axis=1)
    starts = np.zeros((len(weights), symbols + 1), np.int32)
    starts[:, 1:] = np.cumsum(shares, axis=1)
    return starts


def _smooth(counts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[contexts, n] counts, each context's mixed with four of its group's (and those with one of each symbol)."""
    parents = np.zeros((int(groups.max()) + 1, counts.shape[1]), np.int64)
    np.add.at(parents, groups, counts)
    parents = parents * 4096 // np.maximum(parents.sum(axis=1, keepdims=True), 1) + 1
    return counts * 1024 + parents[groups] * _CONTEXT_WEIGHT // 4


def _tail_groups(temperatures: int) -> np.ndarray:
    return np.arange(tail.contexts(temperatures)) // rans.SYMBOLS


def _level_groups() -> np.ndarray:
    """Sparse contexts share by rank and ratio (the bound apart), dense ones by level."""
    context = np.arange(levels.CONTEXTS)
    sparse = context - levels.SPARSE
    rank, ratio = sparse // (levels.BOUNDS * levels.RATIOS), sparse % levels.RATIOS
    dense = (context - levels.DENSE) // levels.FILLS
    groups = np.where(context < levels.DENSE, 1 + rank * levels.RATIOS + ratio, 0)
    groups = np.where(context >= levels.DENSE, 1 + levels.RANKS * levels.RATIOS + dense, groups)
    return np.where(context == levels.MISSING, 0, groups)


def _given(counts: np.ndarray) -> np.ndarray:
    """[T + 1, C] counts of types by token class, each class's mixed with eight of all."""
    parent = counts.sum(axis=0)
    parent = (parent * 4096 + 1) // max(1, int(parent.sum())) + 1
    return counts * 4096 + parent * _TYPE_WEIGHT


def logarithms(values: np.ndarray, fraction: int = 4) -> np.ndarray:
    """log2 of whole numbers >= 1 in steps of 2^-fraction: bit length, then the bits after the leading one."""
    length = np.frexp(values.astype(np.float64))[1].astype(np.int64)
    rest = np.where(length > fraction, values >> np.maximum(length - 1 - fraction, 0), 0)
    return (length << fraction) | (rest & ((1 << fraction) - 1))


def _bands(values: np.ndarray, bands: int) -> np.ndarray:
    """[n] falling values >= 1 to [n] bands 0..bands-1 of equal width in the logarithm."""
    if not len(values):
        return np.zeros(0, np.int64)
    logs = logarithms(values)
    return (logs[0] - logs) * bands // (int(logs[0] - logs[-1]) + 1)


def _coder(counts: np.ndarray, seen: np.ndarray, vocabulary: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """(the arrays that `ids.py` takes after given_starts, costs [U, C]). counts: [U, C]."""
    everywhere = counts.sum(axis=1, dtype=np.int64)
    total = max(1, int(everywhere.sum()))
    types = counts.shape[1]
    starts = np.zeros((types, ids.CLASSES + 1), np.int32)
    shares = np.zeros((types, ids.CLASSES), np.int32)
    bases = np.zeros((types, ids.CLASSES + 1), np.int32)
    ranks = np.full((types, max(1, len(seen))), -1, np.int32)
    id_shares = np.zeros((types, len(seen)), np.int32)
    orders: list[np.ndarray] = []
    bands: list[np.ndarray] = []
    escaped = np.zeros(len(seen), np.int64)
    base = 0
    for kind in range(types):
        own = counts[:, kind].astype(np.int64)
        scale = int(own.sum()) + SMOOTHING
        background = (everywhere * SMOOTHING << ids.ID_BITS) // (total * scale)
        once = (own == 1) & (background < SMALLEST_SHARE)  # would have taken the escape, had it not been in the sample
        escaped += once
        room = (1 << ids.ID_BITS) * (scale - min(int(once.sum()) + 1, scale // 2)) // scale
        wanted = ((own << ids.ID_BITS) // scale + background) * (room >> 4) >> (ids.ID_BITS - 4)
        rows = np.flatnonzero(wanted >= SMALLEST_SHARE)
        rows = rows[np.argsort(-wanted[rows], kind="stable")]
        band = _bands(wanted[rows], ids.CLASSES - 1) + 1
        sizes = np.bincount(band, minlength=ids.CLASSES)
        sums = np.zeros(ids.CLASSES, np.int64)
        np.add.at(sums, band, wanted[rows])
        share = sums // np.maximum(sizes, 1)
        share[0] = (1 << ids.ID_BITS) - int((share * sizes)[1:].sum())
        widths = share * np.where(np.arange(ids.CLASSES) == 0, 1, sizes)
        if widths[0] == 1 << ids.ID_BITS:  # nothing but the escape: a slot is left unused, since it may not own all
            widths[:2] -= 1, -1
        share[0] = widths[0]
        starts[kind, 1:] = np.cumsum(widths)
        shares[kind] = np.maximum(share, 1)
        bases[kind, 1:] = base + np.cumsum(np.where(np.arange(ids.CLASSES) == 0, 0, sizes))
        bases[kind, 0] = base
        ranks[kind, rows] = base + np.arange(len(rows))
        id_shares[kind, rows] = share[band]
        orders.append(seen[rows])
        bands.append(band)
        base += len(rows)

    all_starts, all_bases, all_order, all_ranks = _order_of_all(everywhere, escaped, seen, vocabulary)
    costs = _costs(id_shares, shares[:, 0], all_starts, all_bases, all_ranks[seen])
    narrow = np.uint16 if vocabulary <= 1 << 16 else np.int32  # the largest table; half of it stays near the processor
    order = np.append(np.concatenate(orders), 0).astype(narrow)  # never empty
    points = np.arange(1 << (ids.ID_BITS - ids.GUIDE_BITS)) << ids.GUIDE_BITS
    guide = np.array([np.searchsorted(row, points, "right") - 1 for row in starts], np.uint8)
    return (
        ids.classes_of(starts, shares, bases), guide, order, ranks,
        np.concatenate(bands).astype(np.uint8), rans.with_guide(all_starts[None]), all_bases, all_order, all_ranks,
    ), costs  # fmt: skip


def _order_of_all(
    everywhere: np.ndarray, escaped: np.ndarray, seen: np.ndarray, vocabulary: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The escape: ids by falling count in 31 bands, those never seen in the 32nd: (starts, bases, order, ranks)."""
    all_counts = np.zeros(vocabulary, np.int64)
    all_counts[seen] = everywhere
    order = np.argsort(-all_counts, kind="stable")
    band = np.full(vocabulary, rans.SYMBOLS - 1)
    found = int((all_counts > 0).sum())
    band[:found] = _bands(all_counts[order[:found]], rans.SYMBOLS - 1)
    weights = np.zeros((1, rans.SYMBOLS), np.int64)
    escapes = np.zeros(vocabulary, np.int64)
    escapes[seen] = escaped
    np.add.at(weights[0], band, escapes[order])
    weights[0, -1] += (
        int((all_counts == 1).sum()) + 1
    )  # what was seen once is about what is yet to be seen (Good-Turing)
    bases = np.zeros(rans.SYMBOLS + 1, np.int32)
    bases[1:] = np.cumsum(np.bincount(band, minlength=rans.SYMBOLS))
    ranks = np.empty(vocabulary, np.int32)
    ranks[order] = np.arange(vocabulary, dtype=np.int32)
    return starts_of(weights)[0], bases, order.astype(np.int32), ranks


def _costs(
    id_shares: np.ndarray, escape_shares: np.ndarray, all_starts: np.ndarray, all_bases: np.ndarray, ranks: np.ndarray
) -> np.ndarray:
    """[U, C] uint8: what an id costs under each type, in 1/8 bit; only the choice of a type rests on it."""
    band = np.searchsorted(all_bases[1:-1], ranks, "right")
    sizes, widths = np.diff(all_bases)[band], np.diff(all_starts)[band]
    beyond = rans.SYMBOL_BITS - np.log2(widths) + np.log2(np.maximum(sizes, 1))
    escape = ids.ID_BITS - np.log2(escape_shares)[None, :] + beyond[:, None]
    direct = ids.ID_BITS - np.log2(np.maximum(id_shares.T, 1))
    costs = np.where(id_shares.T > 0, direct, escape)
    return np.ascontiguousarray(np.minimum(np.rint(8 * costs), 255).astype(np.uint8))
