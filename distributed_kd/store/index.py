"""The shard index of an artifact: one row a shard, as an Arrow table beside the manifest that holds its digest.

Shard file names follow from shard numbers and are never read from an artifact, so a hostile index cannot name a
file outside its folder.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

import pyarrow as pa

from distributed_kd.errors import RequestError
from distributed_kd.store.arrow import table_of
from distributed_kd.store.digest import sha256
from distributed_kd.store.filesystem import Store

INDEX_NAME = "index.arrow"

# An artifact is untrusted input: what it says of itself is held to these before anything is read or allocated.
MAXIMUM_SHARDS = 1 << 22
MAXIMUM_ROWS = 1 << 31
MAXIMUM_POSITIONS = 1 << 40
MAXIMUM_BYTES = 1 << 40
MAXIMUM_INDEX_BYTES = 1 << 30
_SHA256 = re.compile("[0-9a-f]{64}")

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


@dataclass(frozen=True)
class IndexReference:
    """What a manifest says of its index, so that index and manifest cannot part unnoticed."""

    sha256: str
    bytes: int


def shard_name(shard: int) -> str:
    return f"shards/{shard:08d}.arrow"


def put_index(store: Store, entries: list[ShardEntry]) -> IndexReference:
    rows = [asdict(entry) for entry in sorted(entries, key=lambda entry: entry.shard)]
    data = table_bytes(pa.Table.from_pylist(rows, schema=SCHEMA))
    store.put(INDEX_NAME, data)
    return IndexReference(sha256(data), len(data))


def read_index(store: Store, reference: IndexReference) -> list[ShardEntry]:
    """Raises `RequestError` when the index is missing, is not the one the manifest names, or cannot be one."""
    where = f"{store.uri}/{INDEX_NAME}"
    if not 0 <= reference.bytes <= MAXIMUM_INDEX_BYTES:
        raise RequestError(f"{store.uri}: the manifest says its index has {reference.bytes} bytes; it cannot")
    data = read_known(store, INDEX_NAME, reference, "make the artifact again")
    table = table_of(data, where)
    if not table.schema.equals(SCHEMA):
        raise RequestError(f"{where} has columns {_columns(table.schema)}, not {_columns(SCHEMA)}")
    if table.num_rows > MAXIMUM_SHARDS or any(column.null_count for column in table.columns):
        raise RequestError(f"{where} has nulls, or more than {MAXIMUM_SHARDS} rows")
    entries = [ShardEntry(**row) for row in table.to_pylist()]
    before = -1
    for entry in entries:
        check_entry(entry, where)
        if entry.shard <= before:
            raise RequestError(f"{where} lists shard {entry.shard} after shard {before}; shards rise")
        before = entry.shard
    return entries


def check_entry(entry: ShardEntry, where: str) -> None:
    """Raises `RequestError` when a shard cannot be what `where` says of it. An entry is untrusted input."""
    limits = {"shard": MAXIMUM_SHARDS - 1, "rows": MAXIMUM_ROWS, "positions": MAXIMUM_POSITIONS, "bytes": MAXIMUM_BYTES}
    for name, limit in limits.items():
        value = getattr(entry, name)
        if type(value) is not int or not 0 <= value <= limit:
            raise RequestError(
                f"{where} is not good: shard {str(entry.shard)[:20]} cannot have {name} {str(value)[:20]}"
            )
    if not isinstance(entry.sha256, str) or not _SHA256.fullmatch(entry.sha256):
        raise RequestError(f"{where} is not good: shard {entry.shard} has no sha256")


def put_shard(store: Store, shard: int, table: pa.Table, positions: int) -> ShardEntry:
    """Writes one shard file whole and returns its index entry."""
    data = table_bytes(table)
    store.put(shard_name(shard), data)
    return ShardEntry(shard, table.num_rows, positions, len(data), sha256(data))


def read_shard(store: Store, entry: ShardEntry) -> pa.Table:
    """The shard's table, once its bytes match the index. Raises `RequestError` naming the file otherwise."""
    name = shard_name(entry.shard)
    return table_of(
        read_known(store, name, entry, "repair the cache, or make the artifact again"), f"{store.uri}/{name}"
    )


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
