"""Targets: a cache's manifest, receipts and index, and any Arrow file."""

from __future__ import annotations

import json
import math
from functools import partial

import pyarrow as pa

from distributed_kd.cache import codecs
from distributed_kd.cache.inspect import inspect
from distributed_kd.cache.manifest import PARTS, CacheManifest, read_entries, read_tables
from distributed_kd.cache.receipts import Receipts
from distributed_kd.errors import RequestError
from distributed_kd.store.arrow import table_of
from distributed_kd.store.digest import fingerprint, seal, sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import (
    INDEX_NAME,
    LIMITS,
    MAXIMUM_SHARDS,
    SCHEMA,
    IndexReference,
    ShardEntry,
    read_index,
)
from distributed_kd.store.manifest import MANIFEST_NAME
from tests.cache.caches import make_cache
from tests.cache.fuzz.refusals import Outcome, bounded_arrow, refused_or_good

_SHARD = 2
_RECEIPT = f"receipts/{_SHARD:08d}.json"


def manifest(data: bytes) -> str:
    """The bytes, and then with the digest and fingerprint that they should have."""
    outcome = Outcome()
    store = Store("memory://fuzz-manifest")
    for content in (data, _resealed(data)):
        store.put(MANIFEST_NAME, content)
        found = None
        with refused_or_good(outcome, RequestError):
            found = CacheManifest.read(store)
        if found is None:
            continue
        assert 0 <= found.shards <= MAXIMUM_SHARDS and found.k >= 1 and found.vocabulary_size >= 1
        assert all(0 < temperature < math.inf for temperature in found.temperatures)
        for read in (
            partial(getattr, found, "teacher_identity"),
            partial(codecs.find, found.codec),
            partial(read_tables, store, found.tables),
            partial(read_entries, store, found) if found.index else str,
            partial(inspect, store.uri),
        ):
            with refused_or_good(outcome, RequestError):
                read()
        found.put(store)
        assert CacheManifest.read(store) == found
    return outcome.letters


def receipt(data: bytes) -> str:
    outcome = Outcome()
    store = Store("memory://fuzz-receipt")
    for content in (data, _resealed(data)):
        store.put(_RECEIPT, content)
        key = _fingerprint_of(content)
        good = Receipts.read_good(store, key, _SHARD + 1)  # refuses nothing
        with refused_or_good(outcome, RequestError):
            assert Receipts.read_all(store, key, _SHARD + 1) == good
        for number, one in good.items():
            assert number == one.entry.shard == _SHARD and one.fingerprint == key
            _check_bounds(one.entry)
            assert good.bytes_by_part == one.bytes_by_part and one.bytes_by_part.keys() == set(PARTS)
    return outcome.letters


def index(data: bytes) -> str:
    outcome = Outcome()
    store = Store("memory://fuzz-index")
    store.put(INDEX_NAME, data)
    with refused_or_good(outcome, RequestError), bounded_arrow(data):
        before = -1
        for entry in read_index(store, IndexReference(sha256(data), len(data))):
            _check_bounds(entry)
            assert entry.shard > before
            before = entry.shard
    return outcome.letters


def arrow(data: bytes) -> str:
    outcome = Outcome()
    with refused_or_good(outcome, RequestError), bounded_arrow(data):
        table_of(data, "a file").validate(full=True)
    return outcome.letters


def _resealed(data: bytes) -> bytes:
    """A JSON object with the fingerprint and the digest that it should have; what can have none as it is."""
    try:
        fields = dict(json.loads(data))
        fields.pop("sha256", None)
        if "made_from" in fields:
            fields["fingerprint"] = fingerprint(fields["made_from"])
        return json.dumps(seal(fields)).encode()
    except (ValueError, TypeError, RecursionError):
        return data


def _fingerprint_of(content: bytes) -> str:
    try:
        return str(json.loads(content)["fingerprint"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


def _check_bounds(entry: ShardEntry) -> None:
    assert all(0 <= getattr(entry, name) <= limit for name, limit in LIMITS.items())
    assert len(entry.sha256) == 64 and set(entry.sha256) <= set("0123456789abcdef")


def _good_file(name: str) -> bytes:
    store = Store("memory://fuzz-good")
    if not store.exists(name):
        make_cache(store, "plain-1", rows=1)
    return store.read(name)


def manifest_seeds() -> list[bytes]:
    fields = json.loads(_good_file(MANIFEST_NAME))
    del fields["sha256"]
    tables = {"sha256": "0" * 64, "bytes": 100}
    teacher = {"teacher": {"config_sha256": "0", "weights_sha256": "1"}}
    variants = [{}, {"index": None}, {"tables": tables, "codec": "compact-1"}, {"made_from": teacher}]
    return [json.dumps(fields | changes).encode() for changes in variants]


def receipt_seeds() -> list[bytes]:
    fields = json.loads(_good_file(_RECEIPT))
    del fields["sha256"]
    return [_good_file(_RECEIPT), json.dumps(fields).encode()]


def index_seeds() -> list[bytes]:
    """Uncompressed, so that one changed byte is one changed number; and one as it is written."""
    good = pa.ipc.open_file(_good_file(INDEX_NAME)).read_all()
    digests = pa.array(["0" * 64, None, "1"])
    tables = [
        good,
        good.slice(0, 0),
        good.slice(1, 2),
        good.set_column(4, "sha256", digests),
        good.set_column(4, "sha256", pa.array(["0" * 64] * 3).dictionary_encode()),
        good.set_column(1, "rows", pa.array([1, 2, 3], pa.uint64())),
        good.replace_schema_metadata({"a": "b"}),
        good.drop_columns("bytes"),
    ]
    return [messages(good, "zstd"), *map(messages, tables)]


def arrow_seeds() -> list[bytes]:
    """Every kind of buffer that a file may have, compressed and not."""
    tables = [
        pa.table({"a": pa.array([1, None, 3], pa.int16()), "b": pa.array([True, False, None])}),
        pa.table({"a": pa.array(["x", None, "yy"]), "b": pa.array([b"", b"z" * 60, None], pa.large_binary())}),
        pa.table({"a": pa.array([[1], [], None]), "b": pa.array([[1, 2]] * 3, pa.list_(pa.int8(), 2))}),
        pa.table({"a": pa.array([{"x": 1}, None]), "b": pa.array(["p", "q"]).dictionary_encode()}),
        pa.table({"a": pa.nulls(3)}),
        pa.Table.from_batches([], SCHEMA),
    ]
    return [*map(messages, tables), *(messages(table, "zstd") for table in tables)]


def messages(table: pa.Table, compression: str | None = None) -> bytes:
    """What `table_of` reads of a file: the beginning, the messages and the end, without the footer."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return b"ARROW1\0\0" + sink.getvalue().to_pybytes() + b"ARROW1"
