"""Caches made to do harm, digests and all. Run as a module: prints what became of each, and the memory they took.

    python -m tests.cache.hostile FOLDER

A process of its own, so that its peak memory is that of these caches.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

from distributed_kd import cache
from distributed_kd.cache.codecs import tables
from distributed_kd.cache.inspect import inspect
from distributed_kd.cache.manifest import put_tables
from distributed_kd.cache.verify import verify
from distributed_kd.errors import RequestError
from distributed_kd.store.digest import sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import SCHEMA, shard_name, table_bytes
from tests.cache.caches import make_cache

HUGE = 1 << 63


def cases() -> dict[str, Callable[[Store], None]]:
    """Each changes a good compact-1 cache of three shards."""

    def manifest(**changes: Any) -> Callable[[Store], None]:
        return lambda store: edit_manifest(store, **changes)

    def raw(data: bytes) -> Callable[[Store], None]:
        return lambda store: store.put("manifest.json", data)

    def index(change: Callable[[pa.Table], pa.Table]) -> Callable[[Store], None]:
        return lambda store: put_index_table(store, change(index_table(store)))

    def column(name: str, values: list[Any], kind: pa.DataType | None = None) -> Callable[[Store], None]:
        return index(lambda table: table.set_column(table.column_names.index(name), name, pa.array(values, kind)))

    def shard(change: Callable[[pa.Table], pa.Table]) -> Callable[[Store], None]:
        return lambda store: put_shard_bytes(
            store, table_bytes(change(pa.ipc.open_file(store.read(shard_name(1))).read_all()))
        )

    def nested(depth: int) -> bytes:
        return b'{"made_from": ' + b'{"a": ' * depth + b"1" + b"}" * depth + b"}"

    names = SCHEMA.names
    return {
        "2^63 shards": manifest(shards=HUGE),
        "-1 shards": manifest(shards=-1),
        "2^62 shards": manifest(shards=1 << 62),
        "2^21 shards": manifest(shards=1 << 21),
        "one shard fewer": manifest(shards=2),
        "shards as text": manifest(shards="many"),
        "shards as a list": manifest(shards=[3]),
        "shards not said": manifest(shards=None),
        "an unknown field": manifest(surprise=1),
        "another version": manifest(version=2),
        "another format": manifest(format="dkd-sequences"),
        "an unknown codec": manifest(codec="later-9"),
        "the other codec": manifest(codec="plain-1"),
        "no temperatures": manifest(temperatures=[]),
        "a temperature of 0": manifest(temperatures=[0.0, 1.0]),
        "other temperatures": manifest(temperatures=[1.0, 3.0]),
        "K of 2^63": manifest(k=HUGE),
        "an index of 2^63 bytes": manifest(index={"sha256": "0" * 64, "bytes": HUGE}),
        "an index of -1 bytes": manifest(index={"sha256": "0" * 64, "bytes": -1}),
        "tables of 2^40 bytes": manifest(tables={"sha256": "0" * 64, "bytes": 1 << 40}),
        "tables of no name": manifest(tables=None),
        "made from NaN": manifest(made_from={"x": float("nan")}),
        "made from something else": manifest(made_from={"x": 1}),
        "another fingerprint": lambda store: edit_manifest(store, made_from={}, fingerprint=sha256(b"{}")),
        "not JSON": raw(b"\x00\xff" * 50),
        "nothing": raw(b""),
        "a list": raw(b"[]"),
        "deep": raw(nested(100_000)),
        "half deep": raw(nested(900)),
        "many digits": raw(b'{"format": "dkd-cache", "version": 1, "shards": ' + b"9" * 100_000 + b"}"),
        "a surrogate": raw(b'{"format": "dkd-cache", "version": 1, "codec": "\\ud800"}'),
        "a huge file": raw(b" " * (64 << 20)),
        "shards of 2^63 - 1 rows": column("rows", [HUGE - 1] * 3, pa.int64()),
        "shards of -1 rows": column("rows", [-1] * 3, pa.int64()),
        "2^63 rows, unsigned": column("rows", [HUGE] * 3, pa.uint64()),
        "2^63 - 1 positions": column("positions", [HUGE - 1] * 3, pa.int64()),
        "2^63 - 1 bytes": column("bytes", [HUGE - 1] * 3, pa.int64()),
        "rows as text": column("rows", ["4", "4", "4"]),
        "rows as numbers with a point": column("rows", [4.0] * 3),
        "digests as numbers": column("sha256", [1, 2, 3]),
        "digests that leave the folder": column("sha256", ["../../etc/passwd"] * 3),
        "null rows": column("rows", [4, None, 4], pa.int64()),
        "one shard twice": column("shard", [0, 1, 1], pa.int64()),
        "shards in another order": column("shard", [1, 0, 2], pa.int64()),
        "other numbers": column("shard", [0, 1, 7], pa.int64()),
        "a negative shard": column("shard", [-1, 1, 2], pa.int64()),
        "other rows": column("rows", [4, 5, 4], pa.int64()),
        "no rows at all": index(lambda table: table.slice(0, 0)),
        "a column fewer": index(lambda table: table.drop_columns("sha256")),
        "a column more": index(lambda table: table.append_column("more", pa.array([1, 2, 3]))),
        "columns in another order": index(lambda table: table.select(names[::-1])),
        "an index bomb": lambda store: put_index_table(store, bomb()),
        "an index that is no table": lambda store: put_index_bytes(store, b"ARROW1\0\0" + b"\xff" * 64 + b"ARROW1"),
        "a tables bomb that says so": lambda store: replace_tables(store, tables.MAGIC + zstd(b"\0" * (500 << 20))),
        "a tables bomb that does not": lambda store: replace_tables(
            store, tables.MAGIC + zstd(b"\0" * (500 << 20), False)
        ),
        "tables of huge arrays": lambda store: replace_tables(
            store, tables.pack({}, {"values": np.zeros(3 << 20, np.uint8)})
        ),
        "tables with an array more": lambda store: replace_tables(store, with_array(store)),
        "tables that are none": lambda store: replace_tables(store, b"dkd-tables-1\n"),
        "a shard bomb": lambda store: put_shard_bytes(store, table_bytes(bomb())),
        "a shard of huge buffers": lambda store: put_shard_bytes(store, with_sizes(store.read(shard_name(1)))),
        "a shard of no columns": shard(lambda table: table.select([])),
        "ids as text": shard(lambda table: table.set_column(1, "input_ids", pa.array([["x"]] * 4))),
        "null ids": shard(lambda table: table.set_column(1, "input_ids", pa.array([None] * 4, pa.list_(pa.int32())))),
        "a mask of another length": shard(lambda table: table.set_column(2, "loss_mask", pa.array([[True]] * 4))),
        "documents of negative lengths": shard(
            lambda table: table.set_column(4, "document_lengths", pa.array([[-1, 9]] * 4, pa.list_(pa.int32())))
        ),
        "streams of no words": shard(lambda table: table.set_column(7, table.column_names[7], pa.array([b""] * 4))),
        "a column twice": shard(lambda table: table.append_column("input_ids", table.column("input_ids"))),
        "a shard in anothers place": lambda store: put_shard_bytes(store, store.read(shard_name(2))),
    }


def edit_manifest(store: Store, **changes: Any) -> None:
    fields = json.loads(store.read("manifest.json")) | changes
    fields.pop("sha256", None)
    store.put("manifest.json", json.dumps(fields).encode())


def index_table(store: Store) -> pa.Table:
    return pa.ipc.open_file(store.read("index.arrow")).read_all()


def put_index_table(store: Store, table: pa.Table) -> None:
    put_index_bytes(store, table_bytes(table))


def put_index_bytes(store: Store, data: bytes) -> None:
    store.put("index.arrow", data)
    edit_manifest(store, index={"sha256": sha256(data), "bytes": len(data)})


def put_shard_bytes(store: Store, data: bytes) -> None:
    store.put(shard_name(1), data)
    rows = index_table(store).to_pylist()
    rows[1] |= {"bytes": len(data), "sha256": sha256(data)}
    put_index_table(store, pa.Table.from_pylist(rows, schema=SCHEMA))


def replace_tables(store: Store, data: bytes) -> None:
    """The tables, and every shard as if it had been written with them."""
    reference = put_tables(store, data)
    edit_manifest(store, tables={"sha256": reference.sha256, "bytes": reference.bytes})
    rows = index_table(store).to_pylist()
    for number, row in enumerate(rows):
        table = pa.ipc.open_file(store.read(shard_name(number))).read_all()
        shard = table_bytes(
            table.replace_schema_metadata((table.schema.metadata or {}) | {b"tables": sha256(data).encode()})
        )
        store.put(shard_name(number), shard)
        row |= {"bytes": len(shard), "sha256": sha256(shard)}
    put_index_table(store, pa.Table.from_pylist(rows, schema=SCHEMA))


def with_array(store: Store) -> bytes:
    header, arrays = tables.unpack(store.read("tables.bin"))
    return tables.pack(header, arrays | {"more": np.zeros(9, np.uint8)})


def zstd(data: bytes, say_size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_content_size=say_size).compress(data)


def bomb() -> pa.Table:
    """400 MB of zeros in one column."""
    return pa.table({"shard": pa.array(np.zeros(50 << 20, np.int64))})


def with_sizes(data: bytes) -> bytes:
    """A shard whose `input_ids` say, before their bytes, that they become 2^40."""
    table = pa.ipc.open_file(data).read_all()
    size = len(table.column("input_ids").combine_chunks().flatten()) * 4
    before = size.to_bytes(8, "little")
    assert data.count(before) >= 1
    return data.replace(before, (1 << 40).to_bytes(8, "little"))


def main(folder: Path) -> None:
    store = Store(str(folder / "cache"))
    make_cache(store, "compact-1")
    good = {
        path.relative_to(folder / "cache").as_posix(): path.read_bytes() for path in (folder / "cache").rglob("*.*")
    }
    for row in cache.open(store).batches(5):
        assert row
    assert verify(store, 1).all_good
    outcomes, grown = [], 0
    makers = cases()
    for name, change in makers.items():
        for file, data in good.items():
            store.put(file, data)
        # A child makes the cache, so that the memory of making it is not counted.

        child = os.fork()
        if child == 0:
            change(store)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, name
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.process_time()
        said, kind = "", "read"
        try:
            opened = cache.open(store)
            for index in range(len(opened)):
                opened[index]
        except BaseException as error:
            kind, said = type(error).__name__, str(error)
        seconds = time.process_time() - begun
        others = []
        for look in (inspect, lambda uri: verify(uri, 1)):
            try:
                found = look(store.uri)
                others.append("good" if getattr(found, "all_good", False) else "seen")
            except RequestError:
                others.append("refused")
        grown = max(grown, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        outcomes.append(
            {"case": name, "kind": kind, "said": said, "seconds": seconds, "all_seconds": time.process_time() - begun,
             "verify": others[1]}
        )  # fmt: skip
    print(json.dumps({"outcomes": outcomes, "grown_kilobytes": grown}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
