"""The shard index of an artifact: one row a shard, as an Arrow table beside the manifest that holds its digest.

Shard file names follow from shard numbers and are never read from an artifact, so a hostile index cannot name a
file outside its folder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pyarrow as pa

from distributed_kd.errors import RequestError
from distributed_kd.store.digest import sha256
from distributed_kd.store.filesystem import Store

INDEX_NAME = "index.arrow"
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
    """Raises `RequestError` when the index is missing or is not the one the manifest names."""
    where = f"{store.uri}/{INDEX_NAME}"
    try:
        data = store.read(INDEX_NAME)
    except FileNotFoundError as error:
        raise RequestError(f"{where} is missing; make the artifact again") from error
    if len(data) != reference.bytes or sha256(data) != reference.sha256:
        raise RequestError(f"{where} is damaged: its digest is not the manifest's; make the artifact again")
    return [ShardEntry(**row) for row in pa.ipc.open_file(pa.BufferReader(data)).read_all().to_pylist()]


def put_shard(store: Store, shard: int, table: pa.Table, positions: int) -> ShardEntry:
    """Writes one shard file whole and returns its index entry."""
    data = table_bytes(table)
    store.put(shard_name(shard), data)
    return ShardEntry(shard, table.num_rows, positions, len(data), sha256(data))


def read_shard(store: Store, entry: ShardEntry) -> pa.Table:
    """The shard's table, once its bytes match the index. Raises `RequestError` naming the file otherwise."""
    where = f"{store.uri}/{shard_name(entry.shard)}"
    try:
        data = store.read(shard_name(entry.shard))
    except FileNotFoundError as error:
        raise RequestError(f"{where} is missing: the index lists shard {entry.shard}") from error
    if len(data) != entry.bytes or sha256(data) != entry.sha256:
        raise RequestError(
            f"{where} is damaged: {len(data)} bytes with digest {sha256(data)[:12]}, "
            f"the index says {entry.bytes} with {entry.sha256[:12]}"
        )
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


def table_bytes(table: pa.Table) -> bytes:
    """Arrow IPC file, zstd level 9: the same bytes for the same table, whatever the threads."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=9), use_threads=False)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
