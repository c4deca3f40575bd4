"""Targets: code tables, the columns of each codec, and a whole shard."""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

from distributed_kd.cache import shard
from distributed_kd.cache.codecs import compact, dense, plain, tables
from distributed_kd.cache.manifest import CacheManifest
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import NO_ID, SoftTargets
from distributed_kd.cache.verify import check_shard
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import RequestError
from distributed_kd.store.digest import sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, shard_name
from tests.cache.fuzz.files import messages
from tests.cache.fuzz.refusals import Outcome, bounded_arrow, refused_or_good
from tests.cache.test_codec_compact import V, draw, teacher

_SHARD = 2
_LENGTHS = np.array([3, 2])  # scored positions of two sequences
_HEAD = 9  # bytes before the words of a compact-1 input
_MOST_EDITS = 12
_NUMBERS = (0, 1, -1, 2, 127, 255, 1 << 15, (1 << 15) - 1, 1 << 20, (1 << 31) - 1, -(1 << 31), 1 << 30)


@lru_cache(maxsize=1)
def known_tables() -> list[bytes]:
    """Of four types of positions and two temperatures; of one type, with ties; of drawn ids. Made by `make_tables`."""
    folder = Path(__file__).parent
    return [
        (folder.parent / "golden" / "compact-1" / "tables.bin").read_bytes(),
        *((folder / name).read_bytes() for name in ("one-type.bin", "draws.bin")),
    ]


def good_targets(number: int, positions: int, seed: int = 0) -> tuple[SoftTargets, np.ndarray]:
    """Targets and tokens that fit the known tables of this number."""
    if number == 0:
        return teacher(positions, 4, (1.0, 2.0), seed=seed)
    if number == 2:
        return draw(positions, 9, seed)
    targets, tokens = teacher(positions, 16, seed=seed)
    return SoftTargets(targets.ids, np.round(targets.logits), targets.tail_odds, (1.0,)), tokens


def make_tables() -> None:
    """Once for a format, as the golden caches."""
    folder = Path(__file__).parent
    (folder / "one-type.bin").write_bytes(compact.build_tables(*good_targets(1, 100), V))
    (folder / "draws.bin").write_bytes(compact.build_tables(*good_targets(2, 200), V, 9))


def tables_file(data: bytes) -> str:
    """A whole file, or what is in its zstd frame."""
    outcome = Outcome()
    file = data if data.startswith(tables.MAGIC) else tables.MAGIC + zstandard.ZstdCompressor(1).compress(data)
    with refused_or_good(outcome, ValueError):
        _, arrays = tables.unpack(file)
        assert sum(array.nbytes for array in arrays.values()) <= tables.SPARE_BYTES + tables.MOST_RATIO * len(file)
        tables.parse(file)
    return outcome.letters


def tables_edited(data: bytes) -> str:
    """Good tables with numbers, shapes, types and fields changed: what they decode is in bounds, too.

    data: which tables, then changes of eight bytes.
    """
    outcome = Outcome()
    number = (data[0] if data else 0) % len(known_tables())
    header, arrays = tables.unpack(known_tables()[number])
    for place in range(1, min(len(data), 1 + 8 * _MOST_EDITS) - 7, 8):
        _edit(header, arrays, *struct.unpack_from("<BBHi", data, place))
    changed = _packed(header, arrays)
    targets, tokens = good_targets(number, int(_LENGTHS.sum()))
    with refused_or_good(outcome, ValueError):
        parsed = tables.parse(changed)
        columns = _good_columns(number)
        found = compact.decode(columns, _LENGTHS, tokens, parsed.temperatures, changed)
        _check(found, len(targets), parsed.width, parsed.vocabulary_size)
    return outcome.letters


def _packed(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """As `tables.pack`, and a hundred times as fast."""
    listed = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    head = json.dumps(header | {"arrays": listed}).encode()
    body = struct.pack("<I", len(head)) + head + b"".join(array.tobytes() for array in arrays.values())
    return tables.MAGIC + zstandard.ZstdCompressor(1).compress(body)


def _edit(header: dict[str, Any], arrays: dict[str, np.ndarray], what: int, which: int, place: int, value: int) -> None:
    if not arrays:
        return
    number = _NUMBERS[value % len(_NUMBERS)] if what & 128 else value
    name = sorted(arrays)[which % len(arrays)]
    array = arrays[name]
    what %= 8
    if what < 3 and array.size:  # one number
        array = array.astype(np.int64)
        array.flat[place % array.size] = number
        arrays[name] = array.astype("<i4")
    elif what == 3 and array.size:  # many
        array = array.astype(np.int64)
        array.flat[place % array.size :] = number
        arrays[name] = array.astype("<i4")
    elif what == 4:  # a shape
        arrays[name] = array.ravel()[: value % (array.size + 1)] if place & 1 else np.append(array, array[-1:], axis=0)
    elif what == 5:  # a type
        arrays[name] = array.astype(("<u8", "<i8", "<i1", ">i4", "<f8", "<u2")[value % 6])
    elif what == 6:  # a field of the header
        field = sorted(header)[which % len(header)]
        header[field] = (number, [number], [1.0], str(number), None, [1.0, 2.0], number / 7, 10.0**308 * number)[
            place % 8
        ]
    else:
        del arrays[name]


@lru_cache(maxsize=4)
def _good_columns(number: int, seed: int = 0) -> dict[str, pa.Array]:
    targets, tokens = good_targets(number, int(_LENGTHS.sum()), seed)
    return compact.encode(targets, _LENGTHS, tokens, known_tables()[number]).columns


def compact_1(data: bytes) -> str:
    """Streams under good tables.

    data: which tables, positions of two sequences, what tokens are made of, how many words each of the first five
    streams has (the sixth has the rest), words.
    """
    outcome = Outcome()
    head, body = data[:_HEAD].ljust(_HEAD, b"\0"), data[_HEAD:]
    code = known_tables()[head[0] % len(known_tables())]
    parsed = tables.parse(code)
    lengths = np.array([head[1] % 8, head[2] % 8])
    tokens = _tokens(int(lengths.sum()), head[3])
    streams, place = [], 0
    for words in (*head[4:_HEAD], max(2, (len(body) - 4 * sum(head[4:_HEAD])) // 4)):
        streams.append(body[place : place + 4 * words].ljust(4 * words, b"\0"))
        place += 4 * words
    columns = {
        name: pa.array(streams[2 * number : 2 * number + 2], pa.binary())
        for number, name in enumerate(("tail", "levels", "ids"))
    }
    with refused_or_good(outcome, ValueError):
        found = compact.decode(columns, lengths, tokens, parsed.temperatures, code)
        _check(found, len(tokens), parsed.width, parsed.vocabulary_size)
    return outcome.letters


def _tokens(positions: int, step: int) -> np.ndarray:
    """Some outside the vocabulary."""
    return (np.arange(positions) * step % (V + 2) - 1).astype(np.int32)


def _check(targets: SoftTargets, positions: int, width: int, vocabulary: int) -> None:
    ids, logits, odds = targets.ids, targets.logits, targets.tail_odds
    assert ids.shape == logits.shape == (positions, width) and odds.shape == (positions, len(targets.temperatures))
    assert (ids.dtype, logits.dtype, odds.dtype) == (np.int32, np.float32, np.float32)
    assert ids.min(initial=0) >= NO_ID and ids.max(initial=0) < vocabulary
    assert ((ids == NO_ID) <= np.isneginf(logits)).all() and not np.isnan(logits).any()
    assert (odds < np.inf).all()


def plain_1(data: bytes) -> str:
    """Columns of right and wrong types; numbers are looked at by `verify`, in `shard_file`.

    data: positions of two sequences; for each column its kind and width; values.
    """
    outcome = Outcome()
    head, body = data[:8].ljust(8, b"\0"), data[8:]
    lengths = np.array([head[0] % 6, head[1] % 6])
    positions = int(lengths.sum())
    columns = {}
    for number, (name, dtype) in enumerate((("ids", "<i4"), ("logits", "<f2"), ("tail_odds", "<f4"))):
        column = _column(head[2 + 2 * number] % 12, head[3 + 2 * number] % 6, lengths, dtype, body[number::3])
        if column is not None:
            columns[name] = column
    with refused_or_good(outcome, ValueError):
        found = plain.decode(columns, lengths, np.zeros(positions, np.int32), (1.0, 2.0))
        assert len(found) == positions and found.ids.shape == found.logits.shape and found.ids.shape[1] >= 1
        assert found.tail_odds.shape == (positions, 2)
        assert (found.ids.dtype, found.logits.dtype, found.tail_odds.dtype) == (np.int32, np.float32, np.float32)
    return outcome.letters


def weighted(data: bytes) -> str:
    """The log-probabilities that plain-1 keeps of drawn ids, of right and wrong types, beside good columns.

    data: the column's kind and width, values.
    """
    outcome = Outcome()
    targets, _ = good_targets(0, int(_LENGTHS.sum()))
    columns = dict(plain.encode(targets, _LENGTHS, np.zeros(len(targets), np.int32)).columns)
    head = data[:2].ljust(2, b"\0")
    log_p = _column(head[0] % 12, head[1] % 10, _LENGTHS, "<f4", data[2:])
    if log_p is not None:
        columns["log_p"] = log_p
    with refused_or_good(outcome, ValueError):
        found = plain.decode(columns, _LENGTHS, np.zeros(len(targets), np.int32), (1.0, 2.0))
        assert (found.log_p is None) == (log_p is None)
        assert found.log_p is None or found.log_p.shape == (len(targets), 2, 4)
    return outcome.letters


def dense_1(data: bytes) -> str:
    """Columns of right and wrong types. data: positions of two sequences, each column's kind, the width, values."""
    outcome = Outcome()
    head, body = data[:5].ljust(5, b"\0"), data[5:]
    lengths = np.array([head[0] % 6, head[1] % 6])
    positions = int(lengths.sum())
    columns = {}
    levels = _column(head[2] % 12, head[4] % 6, lengths, "<u1", body[::2])
    ranges = _column(head[3] % 12, 1, lengths, "<f2", body[1::2])
    if levels is not None:
        columns["levels"] = levels
    if ranges is not None:
        is_nested = pa.types.is_list(ranges.type) and pa.types.is_fixed_size_list(ranges.type.value_type)
        columns["ranges"] = ranges
        if is_nested and not ranges.null_count and not ranges.flatten().null_count:
            columns["ranges"] = pa.ListArray.from_arrays(
                pa.array(np.cumsum([0, *[len(row) for row in ranges]]), pa.int32()), ranges.flatten().flatten()
            )
    with refused_or_good(outcome, ValueError):
        found = dense.decode(columns, lengths, np.zeros(positions, np.int32), (1.0, 2.0))
        _check(found, positions, found.ids.shape[1], max(1, found.ids.shape[1]))
        assert (found.logits <= 0).all() and np.isfinite(found.logits).all()
    return outcome.letters


def _column(kind: int, width: int, lengths: np.ndarray, dtype: str, values: bytes) -> pa.Array | None:
    """A column as it should be (kinds 0 and 9), or not."""
    if kind == 3:
        return None
    count = int(lengths.sum()) * width
    size = count * np.dtype(dtype).itemsize
    numbers = np.frombuffer(values.ljust(size, b"\0")[:size], dtype)
    flat = pa.array(numbers, mask=np.arange(count) == count - 1 if kind == 2 else None)
    if kind == 1:
        flat = flat.cast(pa.float64())
    elif kind == 4:
        return flat
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    if kind == 5:
        return pa.ListArray.from_arrays(pa.array(ends), pa.nulls(int(ends[-1])))
    if kind == 6:
        ends = np.maximum(ends - 1, 0)
    if width == 0:
        return pa.array([[[]] * length for length in lengths], pa.list_(pa.list_(flat.type, 0)))
    inner: pa.Array = pa.FixedSizeListArray.from_arrays(flat, width)
    if kind == 7 and len(inner):
        inner = pa.array([None, *inner[1:].to_pylist()], inner.type)
    column: pa.Array = pa.ListArray.from_arrays(pa.array(ends), inner)
    if kind == 8:
        column = pa.array([None, *column[1:].to_pylist()], column.type)
    elif kind == 9:  # a slice
        column = pa.concat_arrays([column, column, column])[2:4]
    elif kind == 10:
        column = column.cast(pa.large_list(inner.type))
    elif kind == 11:
        column = column[:1]
    return column


def shard_file(data: bytes) -> str:
    """A shard as `dkd verify` reads it. data: the codec, an Arrow file."""
    outcome = Outcome()
    codec = ("plain-1", "compact-1")[data[0] % 2] if data else "plain-1"
    file = data[1:]
    store = Store("memory://fuzz-shard")
    store.put(shard_name(_SHARD), file)
    entry = ShardEntry(_SHARD, len(_LENGTHS), int(_LENGTHS.sum()), len(file), sha256(file))
    with refused_or_good(outcome, RequestError), bounded_arrow(file):
        for row in check_shard(store, _manifest(codec), entry, _tables_of(codec)):
            positions = row.sequence.positions
            _check(row.targets, positions, row.targets.ids.shape[1], V)
            assert row.sequence.position_documents.shape == (positions,)
            assert row.sequence.labels.shape == row.sequence.position_ids.shape == row.sequence.input_ids.shape
    return outcome.letters


@lru_cache(maxsize=2)
def _manifest(codec: str) -> CacheManifest:
    return CacheManifest(
        made_from={}, fingerprint=sha256(b"{}"), codec=codec, teacher="none", revision=None, tokenizer_sha256="0" * 64,
        vocabulary_size=V, packing="isolate", method="top_k", k=4, temperatures=[1.0, 2.0], shards=3, index=None,
    )  # fmt: skip


def _tables_of(codec: str) -> bytes | None:
    return known_tables()[0] if codec == "compact-1" else None


def tables_file_seeds() -> list[bytes]:
    small = {"values": np.arange(3, dtype="<i4"), "within": np.zeros((2, 2), "<u1")}
    packed = tables.pack({"width": 4, "temperatures": [1.0]}, small)
    return [packed, zstandard.ZstdDecompressor().decompress(packed[len(tables.MAGIC) :]), known_tables()[1]]


def tables_edited_seeds() -> list[bytes]:
    """Nothing changed; and every array and field changed in each way."""
    kinds = (0, 3, 4, 5, 6, 7, 128, 131)
    edits = [struct.pack("<BBHi", what, which, which, 1) for what in kinds for which in range(13)]
    return [bytes([number]) for number in range(3)] + [bytes([0]) + edit for edit in edits]


def compact_1_seeds() -> list[bytes]:
    seeds = []
    for number in range(3):
        for seed, step in enumerate((1, 7)):
            targets, _ = good_targets(number, int(_LENGTHS.sum()), seed)
            tokens = _tokens(len(targets), step)
            columns = compact.encode(targets, _LENGTHS, tokens, known_tables()[number]).columns
            streams = [row.as_py() for name in ("tail", "levels", "ids") for row in columns[name]]
            words = [len(stream) // 4 for stream in streams[:-1]]
            seeds.append(bytes([number, *_LENGTHS, step, *words]) + b"".join(streams))
    return seeds


def plain_1_seeds() -> list[bytes]:
    good = [bytes([2, 3, kind, 4, kind, 4, kind, 2]) + bytes(range(240)) for kind in range(12)]
    return [*good, bytes([0, 0, 0, 4, 0, 4, 0, 2])]


def weighted_seeds() -> list[bytes]:
    return [bytes([kind, 8]) + bytes(range(160)) for kind in range(12)] + [bytes([0, 4]) + bytes(80)]


def dense_1_seeds() -> list[bytes]:
    good = [bytes([2, 3, kind, other, 4]) + bytes(range(60)) for kind in range(12) for other in (0, kind)]
    return [*good, bytes([0, 0, 0, 0, 4])]


def shard_file_seeds() -> list[bytes]:
    seeds = []
    targets, tokens = good_targets(0, int(_LENGTHS.sum()))
    rows = []
    for number, part in enumerate((slice(0, 3), slice(3, 5))):
        length = len(tokens[part]) + 2
        ids, mask = np.zeros(length, np.int32), np.zeros(length, bool)
        ids[1:-1], mask[1:-1] = tokens[part], True
        runs = np.array([1, length - 1], np.int32)
        sequence = Sequence(number, ids, mask, np.array([2 * number, 2 * number + 1]), runs, isolated=True)
        rows.append(Row(sequence, targets[part]))
    for number, codec in enumerate(("plain-1", "compact-1")):
        data, _ = shard.encode(rows, codec, sha256(b"{}"), _SHARD, _tables_of(codec))
        table = pa.ipc.open_file(data).read_all()
        files = messages(table, "zstd"), messages(table), messages(table.slice(1))
        seeds += [bytes([number]) + file for file in files]
    return seeds
