"""What an artifact may say of itself, to the last number: a limit is in, one beyond it is out."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pyarrow as pa
import pytest

from distributed_kd.errors import RequestError
from distributed_kd.store import arrow, index, manifest
from distributed_kd.store.arrow import table_of
from distributed_kd.store.digest import canonical_json, differences, fingerprint, seal, sha256, unseal
from distributed_kd.store.filesystem import Store, open_filesystem
from distributed_kd.store.folder import as_local_folder, put_folder
from distributed_kd.store.index import (
    IndexReference,
    ShardEntry,
    check_entry,
    put_index,
    put_shard,
    read_index,
    read_known,
    shard_name,
    table_bytes,
)
from distributed_kd.store.manifest import Manifest, Run, peak_memory_bytes

TABLE = pa.table({"x": pa.array(range(1000), pa.int64()), "y": pa.array([[1, 2]] * 1000, pa.list_(pa.int16()))})
ENTRY = ShardEntry(3, 4, 5, 6, "a" * 64)


class ToyManifest(Manifest):
    format: str = "toy"
    version: int = 1


# ---------------------------------------------------------------- Arrow files


def test_what_an_arrow_file_becomes_is_bounded_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table_bytes(TABLE)
    becomes = 8000 + 4 * 1001 + 2 * 2000  # x; offsets and values of y
    for spare, ratio in ((becomes, 0), (becomes - len(data), 1), (0, -(-becomes // len(data)))):
        monkeypatch.setattr(arrow, "SPARE_BYTES", spare)
        monkeypatch.setattr(arrow, "MOST_RATIO", ratio)
        assert table_of(data, "x").equals(TABLE)
    monkeypatch.setattr(arrow, "MOST_RATIO", 0)
    monkeypatch.setattr(arrow, "SPARE_BYTES", becomes - 1)
    with pytest.raises(RequestError, match=f"{len(data)} bytes that would become {becomes}"):
        table_of(data, "x")


def test_buffers_that_are_kept_as_they_are_count_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(table_bytes(pa.table({"x": pa.array([1], pa.int8())})))
    body = len(data) - data[::-1].index(struct.pack("<q", 1)[::-1]) - 8  # the size before the only buffer
    assert table_of(bytes(data), "x").num_rows == 1
    for size, refused in ((-2, "negative size"), (1 << 40, "would become"), (-(1 << 62), "negative size")):
        struct.pack_into("<q", data, body, size)
        with pytest.raises(RequestError, match=refused):
            table_of(bytes(data), "x")
    struct.pack_into("<q", data, body, -1)  # then Arrow takes the rest of the buffer as it is
    assert table_of(bytes(data), "x").num_rows == 1
    monkeypatch.setattr(arrow, "MOST_RATIO", 0)
    monkeypatch.setattr(arrow, "SPARE_BYTES", 8)
    with pytest.raises(RequestError, match="would become"):
        table_of(bytes(data), "x")


@pytest.mark.parametrize("data", [b"", b"ARROW1\0\0", table_bytes(TABLE)[:-1], b"x" + table_bytes(TABLE)[1:]])
def test_what_does_not_begin_and_end_as_an_arrow_file_is_refused(data: bytes) -> None:
    with pytest.raises(RequestError, match="a file is damaged: not an Arrow table that this reads") as caught:
        table_of(data, "a file")
    assert len(str(caught.value)) < 300


def test_dictionaries_and_older_versions_are_refused() -> None:
    """Both say in other places how large their buffers become."""
    encoded = pa.table({"x": pa.array(["a", "b"]).dictionary_encode()})
    with pytest.raises(RequestError, match="neither a schema nor rows"):
        table_of(table_bytes(encoded), "x")
    sink = pa.BufferOutputStream()
    older = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4)
    with pa.ipc.new_file(sink, TABLE.schema, options=older) as writer:
        writer.write_table(TABLE)
    with pytest.raises(RequestError, match="another version"):
        table_of(sink.getvalue().to_pybytes(), "x")


def test_messages_that_do_not_say_what_they_are_are_refused() -> None:
    data = bytearray(table_bytes(TABLE))
    begin = 16  # of the schema's message, after the magic, a marker and its size
    for _ in ("schema", "rows"):
        table = begin + struct.unpack_from("<I", data, begin)[0]
        vtable = table - struct.unpack_from("<i", data, table)[0]
        for field in range(3):  # version, kind, header: not there
            changed = bytearray(data)
            struct.pack_into("<H", changed, vtable + 4 + 2 * field, 0)
            with pytest.raises(RequestError, match="not an Arrow table that this reads"):
                table_of(bytes(changed), "x")
        begin += struct.unpack_from("<i", data, begin - 4)[0] + 8


def test_limits_are_those_of_the_format() -> None:
    """docs/cache-format.md says these."""
    assert (arrow.SPARE_BYTES, arrow.MOST_RATIO, index.MAXIMUM_SHARDS) == (64 << 20, 256, 1 << 22)


# ---------------------------------------------------------------- the index


@pytest.mark.parametrize(
    ("name", "limit"), [("shard", (1 << 22) - 1), ("rows", 1 << 31), ("positions", 1 << 40), ("bytes", 1 << 40)]
)
def test_an_entry_is_within_its_limits(name: str, limit: int) -> None:
    for value in (0, limit):
        check_entry(replace(ENTRY, **{name: value}), "here")
    for value in (-1, limit + 1, True, 1.0, None, "1"):
        with pytest.raises(RequestError, match=f"here is not good: shard .* cannot have {name}"):
            check_entry(replace(ENTRY, **{name: value}), "here")


@pytest.mark.parametrize("digest", ["a" * 63, "a" * 65, "A" * 64, "g" * 64, "", None, 1])
def test_an_entry_has_a_digest(digest: object) -> None:
    check_entry(ENTRY, "here")
    with pytest.raises(RequestError, match="shard 3 has no sha256"):
        check_entry(replace(ENTRY, sha256=digest), "here")


def test_an_index_says_how_large_it_is_within_reason(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    reference = put_index(store, [ENTRY])
    assert [entry.shard for entry in read_index(store, reference)] == [3]
    for size in (-1, (1 << 30) + 1):
        with pytest.raises(RequestError, match=f"says its index has {size} bytes; it cannot"):
            read_index(store, replace(reference, bytes=size))
    for size in (0, 1 << 30):  # then it is not that
        with pytest.raises(RequestError, match="is damaged"):
            read_index(store, replace(reference, bytes=size))


def test_an_index_has_so_many_rows_and_not_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    reference = put_index(store, [replace(ENTRY, shard=number) for number in (1, 0)])
    monkeypatch.setattr(index, "MAXIMUM_SHARDS", 2)
    assert [entry.shard for entry in read_index(store, reference)] == [0, 1]
    reference = put_index(store, [replace(ENTRY, shard=number) for number in (0, 1, 1)])
    with pytest.raises(RequestError, match="more than 2 rows"):
        read_index(store, reference)
    monkeypatch.setattr(index, "MAXIMUM_SHARDS", 3)
    with pytest.raises(RequestError, match="lists shard 1 after shard 1"):
        read_index(store, reference)


def test_a_file_is_the_one_that_is_known(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("file", b"12345")
    known = IndexReference(sha256(b"12345"), 5)
    assert read_known(store, "file", known, "mend it") == b"12345"
    for size, said in ((4, "more than its 4 bytes"), (6, "5 of its 6 bytes are there")):
        with pytest.raises(RequestError, match=f"file is damaged: .*{said}; mend it"):
            read_known(store, "file", replace(known, bytes=size), "mend it")
    with pytest.raises(RequestError, match=r"digest is .*; mend it"):
        read_known(store, "file", replace(known, sha256="0" * 64), "mend it")
    with pytest.raises(RequestError, match="other is missing; mend it"):
        read_known(store, "other", known, "mend it")
    store.put("folder/x", b"")
    with pytest.raises(RequestError, match="folder is a folder, not a file; mend it"):
        read_known(store, "folder", known, "mend it")


def test_a_shard_is_put_under_its_number_with_what_it_is(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entry = put_shard(store, 12, TABLE, positions=7)
    data = (tmp_path / "shards" / "00000012.arrow").read_bytes()
    assert entry == ShardEntry(12, 1000, 7, len(data), sha256(data))
    assert shard_name(12) == "shards/00000012.arrow"
    assert data == table_bytes(TABLE)


@pytest.mark.parametrize("record", [ENTRY, IndexReference("x", 1), Run(1.0, 2)])
def test_what_was_read_is_not_changed(record: object) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(record, fields(record)[0].name, 0)  # type: ignore[arg-type]
    assert hash(record) == hash(replace(record))  # type: ignore[type-var]


# ---------------------------------------------------------------- digests


def test_canonical_json_is_the_same_everywhere() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == b'{"a":"\xc3\xa9","b":[1,2.5,null]}'
    assert fingerprint({"a": 1}) == sha256(b'{"a":1}')
    for value in (float("nan"), float("inf"), "\ud800"):
        with pytest.raises(ValueError):  # noqa: PT011 - json's and UTF-8's own
            canonical_json(value)


def test_a_seal_is_taken_out_and_compared() -> None:
    sealed = seal({"a": 1})
    assert sealed == {"a": 1, "sha256": sha256(b'{"a":1}')}
    assert unseal(sealed) and sealed == {"a": 1}
    assert unseal({"a": 1})
    changed = seal({"a": 1}) | {"a": 2}
    assert not unseal(changed) and changed == {"a": 2}
    with pytest.raises(ValueError, match="JSON"):
        unseal({"a": float("nan")})


def test_differences_are_short_and_say_where() -> None:
    long = "x" * 58  # 60 with its quotes
    assert differences({"a": {"b": [1]}}, {"a": {"b": [2]}}) == ["a.b: [1], not [2]"]
    assert differences({"a": long}, {"a": long}) == []
    assert differences({"a": long}, {}) == [f'a: "{long}", not nothing']
    assert differences({"a": f"{long}yz"}, {}) == [f'a: "{"x" * 39}…{"x" * 13}yz", not nothing']
    assert differences(1, 2, "here") == ["here: 1, not 2"]


# ---------------------------------------------------------------- manifests


def test_a_manifest_is_so_large_and_not_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    ToyManifest(made_from={}, fingerprint=fingerprint({})).put(store)
    size = len(store.read("manifest.json"))
    monkeypatch.setattr(manifest, "MAXIMUM_BYTES", size)
    assert ToyManifest.read(store) is not None
    monkeypatch.setattr(manifest, "MAXIMUM_BYTES", size - 1)
    with pytest.raises(RequestError, match=f"has more than {size - 1} bytes"):
        ToyManifest.read(store)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "it is not a JSON object"),
        ({}, "is null version null; this reads toy version 1"),
        ({"format": "toy", "version": 2}, 'is "toy" version 2; this reads toy version 1'),
        ({"format": "toys\n", "version": 1}, r'is "toys\\n" version 1'),
        ({"format": "toy", "version": 1, "made_from": {}}, "this version reads: fingerprint Field required"),
        ({"format": "toy", "version": 1, "made_from": {}, "fingerprint": "x"}, "fingerprint is not that of made_from"),
        ({"format": "toy", "version": 1, "made_from": {}, "fingerprint": fingerprint({}), "sha256": "x"}, "its sha256"),
    ],
)
def test_a_manifest_that_is_none_is_refused_with_why(tmp_path: Path, content: object, said: str) -> None:
    store = Store(str(tmp_path))
    store.put("manifest.json", json.dumps(content).encode())
    with pytest.raises(RequestError, match=said) as caught:
        ToyManifest.read(store)
    assert str(caught.value).startswith(f"{store.uri}/manifest.json")


def test_a_manifest_in_no_folder_or_as_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match="file is not a folder"):
        ToyManifest.read(Store(str(tmp_path / "file")))
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(RequestError, match="is a folder, not a file"):
        ToyManifest.read(Store(str(tmp_path)))
    assert ToyManifest.read(Store(str(tmp_path / "nowhere"))) is None


def test_how_long_it_took_comes_back(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert Run.read(store) is None
    Run(1.5, 7).put(store)
    assert Run.read(store) == Run(1.5, 7)
    store.put("run.json", b"{}")
    with pytest.raises(RequestError, match=r"run\.json is damaged"):
        Run.read(store)
    said = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])
    assert said * 1024 * 0.9 < peak_memory_bytes() < said * 1024 * 1.1


# ---------------------------------------------------------------- folders


def test_a_store_is_where_it_says(tmp_path: Path) -> None:
    store = Store(f"{tmp_path}//")
    assert (store.uri, store.path("a/b"), store.child("c").uri) == (str(tmp_path), f"{tmp_path}/a/b", f"{tmp_path}/c")
    assert Store("/").uri == "/"
    assert store.is_local and not Store("memory://x").is_local
    again = pickle.loads(pickle.dumps(store))
    assert again.uri == store.uri
    free = shutil.disk_usage(tmp_path).free
    for place in (store, Store(str(tmp_path / "not" / "yet"))):
        assert place.free_bytes() == pytest.approx(free, rel=0.2)
    assert Store("memory://x").free_bytes() is None


def test_a_file_is_read_up_to_a_length(tmp_path: Path) -> None:
    for store in (Store(str(tmp_path)), Store("memory://limits")):
        store.put("f", b"12345")
        store.put("empty", b"")
        assert [store.read("f", at_most=n) for n in (1, 5, 6)] == [b"1", b"12345", b"12345"]
        assert store.read("empty", at_most=3) == b""
        assert store.exists("f") and not store.exists("g")
        with pytest.raises(FileNotFoundError):
            store.read("g", at_most=3)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("f", b"old")
    with pytest.raises(TypeError):
        store.put("f", 5)  # type: ignore[arg-type]
    assert store.read("f") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    (tmp_path / "x.tmp").write_text("a write that was cut")
    (tmp_path / "folder").mkdir()
    assert store.list("") == ["f"]
    store.check_writable()
    assert store.list("") == ["f"]


def test_a_url_that_nothing_here_opens_is_refused() -> None:
    with pytest.raises(RequestError, match="nowhere://x is not a path or URL this can open"):
        open_filesystem("nowhere://x")


@pytest.mark.parametrize("uri", ["memory://folders", None])
def test_a_folder_goes_up_and_comes_down(tmp_path: Path, uri: str | None) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a").write_bytes(b"1")
    (source / "deep" / "b").write_bytes(b"22")
    store = Store(uri or str(tmp_path / "store"))
    put_folder(source, store, "model")
    assert store.read("model/deep/b") == b"22"
    found = as_local_folder(store, "model")
    assert (found == tmp_path / "store" / "model") == (uri is None)
    files = {path.relative_to(found).as_posix(): path.read_bytes() for path in found.rglob("*") if path.is_file()}
    assert files == {"a": b"1", "deep/b": b"22"}
