"""compact-1: about 75 bytes a position at K = 64 where plain-1 takes 200, under a stated KL.

Three byte strings a sequence, each decodable without its neighbours: `tail` (tail odds), `levels` (how probable the
kept ids are) and `ids`. Ids are exact; probabilities are rounded so that the KL this adds stays within 3e-4 nat a
position on data like the sample that the code tables were made from (see `quantiser.py`). A drawn id's count is exact:
drawn targets are ids with logits T * log(count / largest count), T being the only temperature, and tail odds -inf.

Within a row, decoded ids stand by falling level, the most probable one first; equal levels have no order. An id of
probability 0 (logit -inf) is not kept: it decodes as `NO_ID`.

Shapes: N positions, W ids kept at most (the width of the tables), G temperatures.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa

from distributed_kd.cache.codecs import ids as id_stream
from distributed_kd.cache.codecs import levels as level_stream
from distributed_kd.cache.codecs import rans, tail
from distributed_kd.cache.codecs.build import build_tables
from distributed_kd.cache.codecs.columns import Encoded, refuse_log_p
from distributed_kd.cache.codecs.compiled import compiled
from distributed_kd.cache.codecs.quantiser import VALUE_BITS
from distributed_kd.cache.codecs.tables import Tables, parse
from distributed_kd.cache.soft_targets import NO_ID, SoftTargets

__all__ = ["NAME", "build_tables", "decode", "encode"]

NAME = "compact-1"
_COLUMNS = ("tail", "levels", "ids")
_ID_BITS = 20
_SPARE_WORDS = 64  # zeros under a sequence's stack, that sets pop before there is anything else


def encode(targets: SoftTargets, lengths: np.ndarray, tokens: np.ndarray, tables: bytes | None) -> Encoded:
    """[N, K] targets of sequences of `lengths` scored positions to three binary columns, one row a sequence.

    tokens: [N] the token at each position. Raises `ValueError` for targets that do not fit the tables.
    """
    code = _parsed(tables)
    refuse_log_p(targets)
    ends = np.cumsum([0, *lengths])
    if ends[-1] != len(targets) or len(tokens) != len(targets):  # before the kernels, which check no bounds
        raise ValueError(f"{len(targets)} positions with {len(tokens)} tokens in sequences of {ends[-1]}")
    rows = _Rows.of(targets, tokens, code)
    sequences = [rows.sequence(int(begin), int(end), code) for begin, end in pairwise(ends)]
    columns = {
        name: pa.array([streams[place] for streams in sequences], pa.binary()) for place, name in enumerate(_COLUMNS)
    }
    return Encoded(columns, {name: name for name in _COLUMNS})


def decode(
    columns: dict[str, pa.Array],
    lengths: np.ndarray,
    tokens: np.ndarray,
    temperatures: tuple[float, ...],
    tables: bytes | None,
) -> SoftTargets:
    """The inverse: [N, W] targets. Raises `ValueError` for bytes that no encoder wrote, whatever they are."""
    code = _parsed(tables)
    if temperatures != code.temperatures:
        raise ValueError(f"code tables for temperatures {list(code.temperatures)}, not {list(temperatures)}")
    ends = np.cumsum([0, *lengths]).astype(np.int64)
    positions = int(ends[-1])
    if len(tokens) != positions or any(name not in columns or len(columns[name]) != len(lengths) for name in _COLUMNS):
        raise ValueError(f"columns {', '.join(columns)} are not those of {len(lengths)} sequences")
    words = {name: _words(columns[name], name) for name in _COLUMNS}

    steps = np.empty((positions, len(temperatures)), np.int32)
    _refuse(_pop_tails(*words["tail"], ends, code.tail_starts, steps), "tail")
    quantiser = code.quantiser
    levels = np.empty((positions, code.width), np.int32)
    kept = np.empty(positions, np.int32)
    failed = _pop_levels(
        *words["levels"], ends, quantiser.masses(steps), quantiser.weights, quantiser.within, quantiser.dense_top,
        quantiser.draws > 0, code.level_starts, levels, kept,
    )  # fmt: skip
    _refuse(failed, "levels")
    ids: np.ndarray = np.empty(levels.size + id_stream.BLOCK, np.int32)
    failed = id_stream.pop_ids(
        *words["ids"], ends, levels.ravel(), kept, _classes(tokens, code), code.width, code.coder, ids
    )
    _refuse(failed, "ids")
    ids = ids[: levels.size].reshape(levels.shape)
    logits = np.empty((positions, code.width), np.float32)
    _fill(levels, kept, quantiser.values, ids, logits)
    return SoftTargets(ids, logits, tail.dequantise(steps), temperatures)


class _Rows:
    """Targets in the order that the streams want: by falling level, then by id."""

    def __init__(self, ids: np.ndarray, levels: np.ndarray, steps: np.ndarray) -> None:
        self.ids = ids  # [N, W] int32, NO_ID after the kept ones
        self.levels = levels  # [N, W] int32, -1 likewise
        self.steps = steps  # [N, G] int32
        self.kept = (levels >= 0).sum(axis=1).astype(np.int32)
        self.masses = self.given = self.seen = self.types = np.empty(0)

    @classmethod
    def of(cls, targets: SoftTargets, tokens: np.ndarray, code: Tables) -> _Rows:
        if targets.temperatures != code.temperatures:
            raise ValueError(f"code tables for {list(code.temperatures)}, targets at {list(targets.temperatures)}")
        positions, width = targets.ids.shape
        levels = code.quantiser.levels(targets)
        kept = levels >= 0
        if ((targets.ids >= code.vocabulary_size) & kept).any():
            raise ValueError(f"an id of {targets.ids.max()} is not of a vocabulary of {code.vocabulary_size}")
        key = (np.int64(level_stream.HIGHEST_LEVEL) - levels) << _ID_BITS | np.maximum(targets.ids, 0)
        likeliest = np.argmax(np.where(kept, targets.logits, -np.inf), axis=1)
        key[np.arange(positions), likeliest] -= 1 << 62  # the first, whatever shares its level
        key = np.sort(np.where(kept, key, np.iinfo(np.int64).max), axis=1)
        key[:, 0] += np.where(kept.any(axis=1), 1 << 62, 0)
        if (kept.sum(axis=1) > code.width).any():
            raise ValueError(f"a row keeps {kept.sum(axis=1).max()} ids; the code tables are for {code.width}")
        if width < code.width:
            key = np.pad(key, ((0, 0), (0, code.width - width)), constant_values=np.iinfo(np.int64).max)
        key = key[:, : code.width]
        there = key != np.iinfo(np.int64).max
        ids = np.where(there, key & ((1 << _ID_BITS) - 1), NO_ID).astype(np.int32)
        levels = np.where(there, level_stream.HIGHEST_LEVEL - (key >> _ID_BITS), -1).astype(np.int32)
        rows = cls(ids, levels, tail.quantise(targets.tail_odds))
        rows.masses = code.quantiser.masses(rows.steps)
        rows.given = _classes(tokens, code)
        rows.seen = np.where(there, code.seen_index[np.maximum(ids, 0)], -1).astype(np.int32)
        rows.types = np.zeros(positions, np.int32)
        if code.costs.shape[1] > 1:
            id_stream.choose_types(rows.seen, rows.kept, rows.given, code.costs, code.given_costs, rows.types)
        return rows

    def sequence(self, begin: int, end: int, code: Tables) -> tuple[bytes, bytes, bytes]:
        part = slice(begin, end)
        width = self.ids.shape[1]
        quantiser = code.quantiser
        events = np.empty((max(3 * self.steps[part].size, level_stream.most_events(end - begin, width)), 2), np.int32)
        count = tail.tail_events(self.steps[part], events)
        tails = _stream(events, count, code.tail_starts)
        count = level_stream.level_events(
            self.levels[part], self.kept[part], self.masses[part], quantiser.weights, quantiser.within,
            quantiser.dense_top, quantiser.draws > 0, events,
        )  # fmt: skip
        levels = _stream(events, count, code.level_starts)

        spare = _SPARE_WORDS
        while True:  # nearly always once; a set of thousands of ids may pop more zeros than that
            words = np.zeros(rans.HEAD + 4 * (end - begin) * (width + 1) + spare, np.uint32)
            first, stop = id_stream.push_ids(
                self.ids[part], self.levels[part], self.kept[part], self.seen[part], self.types[part],
                self.given[part], code.coder, words, len(words) - spare,
            )  # fmt: skip
            if first >= 0:
                return tails, levels, words[first:stop].astype("<u4").tobytes()
            spare *= 8


def _parsed(tables: bytes | None) -> Tables:
    if tables is None:
        raise ValueError(f"{NAME} needs the cache's code tables")
    return parse(tables)


def _classes(tokens: np.ndarray, code: Tables) -> np.ndarray:
    """[N] tokens to token classes; a token outside the vocabulary is of the class of unseen ones."""
    inside = (tokens >= 0) & (tokens < code.vocabulary_size)
    unseen = code.costs.shape[1]
    return np.where(inside, code.token_classes[np.where(inside, tokens, 0)], unseen).astype(np.int32)


def _stream(events: np.ndarray, count: int, starts: np.ndarray) -> bytes:
    words = np.zeros(rans.HEAD + count + 1, np.uint32)
    x, place = rans.push_events(events, count, starts, words)
    return words[rans.finish(x, words, place) :].astype("<u4").tobytes()


def _words(column: pa.Array, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(all of a column's bytes as a copy of 32-bit words, where each row ends in them, from 0)."""
    if not pa.types.is_binary(column.type) or column.null_count:
        raise ValueError(f"column {name} is {column.type}, not binary without nulls")
    _, offsets, data = column.buffers()
    if not len(column):
        return np.zeros(0, np.uint32), np.zeros(1, np.int64)
    ends = np.frombuffer(offsets, np.int32, len(column) + 1, 4 * column.offset).astype(np.int64)
    sizes = np.diff(ends)
    if (sizes < 4 * rans.HEAD).any() or (sizes % 4).any():
        raise ValueError(f"column {name} holds a stream of no whole words")
    words = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].copy().view("<u4").astype(np.uint32, copy=False)
    return words, (ends - ends[0]) // 4


def _refuse(failed: int, name: str) -> None:
    if failed >= 0:
        raise ValueError(f"the {name} of sequence {failed} are damaged")


@compiled
def _pop_tails(words, word_ends, ends, starts, steps):  # type: ignore[no-untyped-def]
    """Kernels over all sequences return the first that is damaged, or -1."""
    for row in range(len(ends) - 1):
        stream = words[word_ends[row] : word_ends[row + 1]]
        if not tail.pop_tail(stream, starts, steps[ends[row] : ends[row + 1]]):
            return row
    return -1


@compiled
def _pop_levels(words, word_ends, ends, masses, weights, within, dense_top, exact, starts, levels, kept):  # type: ignore[no-untyped-def]
    for row in range(len(ends) - 1):
        stream = words[word_ends[row] : word_ends[row + 1]]
        begin, end = ends[row], ends[row + 1]
        if not level_stream.pop_levels(
            stream, masses[begin:end], weights, within, dense_top, exact, starts, levels[begin:end], kept[begin:end]
        ):
            return row
    return -1


@compiled
def _fill(levels, kept, values, ids, logits):  # type: ignore[no-untyped-def]
    """Logits from levels, relative to each row's highest; what is not kept filled."""
    for row in range(len(levels)):
        top = np.int64(values[levels[row, 0]]) if kept[row] > 0 else np.int64(0)
        for column in range(kept[row]):
            logits[row, column] = np.float32(np.int64(values[levels[row, column]]) - top) / np.float32(1 << VALUE_BITS)
        for column in range(kept[row], levels.shape[1]):
            ids[row, column] = NO_ID
            logits[row, column] = -np.inf
