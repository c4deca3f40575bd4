"""The shard index of an artifact: one row a shard, as an Arrow table beside the manifest that holds its digest.

Shard file names follow from shard numbers and are never read from an artifact, so a hostile index cannot name a
file outside its folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distributed_kd.errors import RequestError
from distributed_kd.store.arrow import table_of
from distributed_kd.store.digest import sha256
from distributed_kd.store.filesystem import Store

INDEX_NAME = "index.arrow"
SHARDS = "shards"

# An artifact is untrusted input: what it says of itself is held to these before anything is read or allocated.
MAXIMUM_SHARDS = 1 << 22
MAXIMUM_INDEX_BYTES = 1 << 30
LIMITS = {"shard": MAXIMUM_SHARDS - 1, "rows": 1 << 31, "positions": 1 << 40, "bytes": 1 << 40}  # their sums fit int64
_SHA256 = "[0-9a-f]{64}"
_AT_A_TIME = 4096  # entries made at once while iterating

SCHEMA = pa.schema(
    [
        ("shard", pa.int64()),
        ("rows", pa.int64()),
        ("positions", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class ShardEntry:
    """`rows` sequences, `positions` scored positions, `bytes` of the file and its sha256."""

    shard: int
    rows: int
    positions: int
    bytes: int
    sha256: str


@dataclass(frozen=True, eq=False)
class ShardIndex(Sequence[ShardEntry]):
    """The entries of an artifact, rising by shard, as columns of equal length: an entry is made when it is asked for.

    A million entries as objects would take seconds and most of a gigabyte.
    """

    shard: np.ndarray  # int64, as the three that follow
    rows: np.ndarray
    positions: np.ndarray
    bytes: np.ndarray
    sha256: pa.StringArray

    @classmethod
    def of(cls, entries: Iterable[ShardEntry]) -> ShardIndex:
        """Of entries in any order."""
        ordered = sorted(entries, key=lambda entry: entry.shard)
        columns = {name: np.array([getattr(entry, name) for entry in ordered], np.int64) for name in LIMITS}
        return cls(**columns, sha256=pa.array([entry.sha256 for entry in ordered], pa.string()))

    @property
    def is_numbered_through(self) -> bool:
        """Whether the shards are 0, 1, ..., so that the entry of shard n stands in place n."""
        return len(self) == 0 or int(self.shard[-1]) == len(self) - 1  # they rise, from 0 or above

    def __len__(self) -> int:
        return len(self.shard)

    @cached_property
    def ends(self) -> np.ndarray:
        """[shards + 1] int64: how many rows there are before each shard, and in all."""
        return np.concatenate([[0], np.cumsum(self.rows)])

    def places_of(self, rows: np.ndarray | int) -> np.ndarray:
        """The places of the shards that hold these rows, counted through all of them, in an array of the same shape."""
        return np.searchsorted(self.ends, rows, "right") - 1

    @overload
    def __getitem__(self, place: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, place: slice) -> ShardIndex: ...
    def __getitem__(self, place: int | slice) -> ShardEntry | ShardIndex:
        if isinstance(place, slice):
            return ShardIndex(*(column[place] for column in self.columns))
        numbers = {name: int(getattr(self, name)[place]) for name in LIMITS}
        return ShardEntry(**numbers, sha256=self.sha256[place].as_py())

    def __iter__(self) -> Iterator[ShardEntry]:
        for begin in range(0, len(self), _AT_A_TIME):
            yield from map(ShardEntry, *(column[begin : begin + _AT_A_TIME].tolist() for column in self.columns))

    @property
    def columns(self) -> list[Any]:
        """In the order of `SCHEMA`."""
        return [getattr(self, name) for name in SCHEMA.names]


@dataclass(frozen=True)
class IndexReference:
    """What a manifest says of its index, so that index and manifest cannot part unnoticed."""

    sha256: str
    bytes: int


def shard_name(shard: int) -> str:
    return f"{SHARDS}/{shard:08d}.arrow"


def put_index(store: Store, entries: Iterable[ShardEntry]) -> IndexReference:
    """Writes the index of these entries, in whatever order they come."""
    index = entries if isinstance(entries, ShardIndex) else ShardIndex.of(entries)
    data = table_bytes(pa.table(index.columns, schema=SCHEMA))
    store.put(INDEX_NAME, data)
    return IndexReference(sha256(data), len(data))


def read_index(store: Store, reference: IndexReference) -> ShardIndex:
    """Raises `RequestError` when the index is missing, is not the one the manifest names, or cannot be one."""
    where = f"{store.uri}/{INDEX_NAME}"
    if not 0 <= reference.bytes <= MAXIMUM_INDEX_BYTES:
        raise RequestError(f"{store.uri}: the manifest says its index has {reference.bytes} bytes; it cannot")
    table = table_of(read_known(store, INDEX_NAME, reference, "make the artifact again"), where)
    if not table.schema.equals(SCHEMA):
        raise RequestError(f"{where} has columns {_columns(table.schema)}, not {_columns(SCHEMA)}")
    if table.num_rows > MAXIMUM_SHARDS or any(column.null_count for column in table.columns):
        raise RequestError(f"{where} has nulls, or more than {MAXIMUM_SHARDS} rows")
    _check_rows(table, where)
    columns = {name: table.column(name).to_numpy() for name in LIMITS}
    return ShardIndex(**columns, sha256=table.column("sha256").combine_chunks())


def _check_rows(table: pa.Table, where: str) -> None:
    """`check_entry` of each row, and that shards rise, all rows at once. Raises it of the first that is not good."""
    shard = table.column("shard").to_numpy()
    is_bad = ~pc.match_substring_regex(table.column("sha256"), rf"\A{_SHA256}\z").to_numpy()
    for name, limit in LIMITS.items():
        column = table.column(name).to_numpy()
        is_bad |= (column < 0) | (column > limit)
    is_bad[1:] |= shard[1:] <= shard[:-1]
    if is_bad.any():
        place = int(is_bad.argmax())
        check_entry(ShardEntry(**table.slice(place, 1).to_pylist()[0]), where)
        raise RequestError(f"{where} lists shard {shard[place]} after shard {shard[place - 1]}; shards rise")


def check_entry(entry: ShardEntry, where: str) -> None:
    """Raises `RequestError` when a shard cannot be what `where` says of it. An entry is untrusted input."""
    for name, limit in LIMITS.items():
        value = getattr(entry, name)
        if type(value) is not int or not 0 <= value <= limit:
            raise RequestError(
                f"{where} is not good: shard {str(entry.shard)[:20]} cannot have {name} {str(value)[:20]}"
            )
    if not isinstance(entry.sha256, str) or not re.fullmatch(_SHA256, entry.sha256):
        raise RequestError(f"{where} is not good: shard {entry.shard} has no sha256")


def put_shard(store: Store, shard: int, table: pa.Table, positions: int) -> ShardEntry:
    """Writes one shard file whole and returns its index entry."""
    data = table_bytes(table)
    store.put(shard_name(shard), data)
    return ShardEntry(shard, table.num_rows, positions, len(data), sha256(data))


def read_shard(store: Store, entry: ShardEntry, remedy: str = "make the artifact again") -> pa.Table:
    """The shard's table, once its bytes match the index. Raises `RequestError` naming the file, and the remedy."""
    name = shard_name(entry.shard)
    return table_of(read_known(store, name, entry, remedy), f"{store.uri}/{name}")


def read_known(store: Store, name: str, known: ShardEntry | IndexReference, remedy: str) -> bytes:
    """A file's bytes, once their size and digest are the known ones; never reads more than one byte beyond them.

    Raises `RequestError` naming the file, and what to do about it.
    """
    where = f"{store.uri}/{name}"
    try:
        data = store.read(name, at_most=known.bytes + 1)
    except FileNotFoundError as error:
        raise RequestError(f"{where} is missing; {remedy}") from error
    except IsADirectoryError as error:
        raise RequestError(f"{where} is a folder, not a file; {remedy}") from error
    if len(data) > known.bytes:
        raise RequestError(f"{where} is damaged: it has more than its {known.bytes} bytes; {remedy}")
    if len(data) < known.bytes:
        raise RequestError(f"{where} is damaged: {len(data)} of its {known.bytes} bytes are there; {remedy}")
    if sha256(data) != known.sha256:
        raise RequestError(f"{where} is damaged: its digest is {sha256(data)[:12]}, not {known.sha256[:12]}; {remedy}")
    return data


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{name[:40]} {kind}" for name, kind in zip(schema.names, schema.types, strict=True))[:300]


def table_bytes(table: pa.Table) -> bytes:
    """Arrow IPC file, zstd level 9: the same bytes for the same table, whatever the threads."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=9), use_threads=False)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
