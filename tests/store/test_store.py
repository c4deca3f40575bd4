"""Files appear whole or not at all, and what is damaged or foreign is refused by name."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest

from distributed_kd.errors import RequestError
from distributed_kd.store.digest import differences, fingerprint
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import put_index, put_shard, read_index, read_shard, shard_name, table_bytes
from distributed_kd.store.manifest import Manifest, refuse_other

TABLE = pa.table({"x": pa.array(range(1000), pa.int64())})


class ToyManifest(Manifest):
    format: str = "toy"
    version: int = 1


def toy_manifest(made_from: dict[str, object]) -> ToyManifest:
    return ToyManifest(made_from=made_from, fingerprint=fingerprint(made_from))


def _rewrite_for_ever(folder: str) -> None:
    store = Store(folder)
    while True:
        for byte in (b"a", b"b"):
            store.put("file", byte * 2_000_000)


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("file", b"a" * 2_000_000)
    for delay in (0.01, 0.03, 0.05, 0.08, 0.12):
        writer = multiprocessing.get_context("spawn").Process(target=_rewrite_for_ever, args=(str(tmp_path),))
        writer.start()
        begun = (tmp_path / "file").stat().st_mtime_ns
        while (tmp_path / "file").stat().st_mtime_ns == begun:  # until it is at work
            time.sleep(0.001)
        time.sleep(delay)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        data = store.read("file")
        assert data in (b"a" * 2_000_000, b"b" * 2_000_000)
    assert store.list("") == ["file"]


def test_memory_and_local_stores_agree(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "here"), "memory://there"):
        store = Store(uri)
        assert not store.exists("a/b")
        assert store.list("a") == []
        store.put("a/b", b"1")
        store.put("a/c", b"22")
        assert store.read("a/b") == b"1"
        assert store.list("a") == ["b", "c"]
        store.delete("a")
        store.delete("a")
        assert store.list("a") == []
        with pytest.raises(FileNotFoundError):
            store.read("a/b")


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match=r"workdir .*file/work cannot be written") as caught:
        Store(str(tmp_path / "file" / "work")).check_writable()
    assert "\n" not in str(caught.value)


def test_the_same_table_gives_the_same_bytes() -> None:
    assert table_bytes(TABLE) == table_bytes(pa.table({"x": pa.array(range(1000), pa.int64())}))


def test_every_flipped_bit_of_a_shard_is_noticed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entry = put_shard(store, 3, TABLE, positions=7)
    good = store.read(shard_name(3))
    for place in range(0, len(good), 97):
        store.put(shard_name(3), good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(RequestError, match=r"00000003\.arrow is damaged"):
            read_shard(store, entry)
    store.put(shard_name(3), good[:-1])
    with pytest.raises(RequestError, match="damaged"):
        read_shard(store, entry)
    store.delete(shard_name(3))
    with pytest.raises(RequestError, match=r"00000003\.arrow is missing"):
        read_shard(store, entry)


def test_an_index_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entries = [put_shard(store, number, TABLE, 7) for number in (1, 0)]
    reference = put_index(store, entries)
    assert [entry.shard for entry in read_index(store, reference)] == [0, 1]
    put_index(store, entries[:1])
    with pytest.raises(RequestError, match=r"index\.arrow is damaged"):
        read_index(store, reference)


def test_a_manifest_comes_back_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert ToyManifest.read(store) is None
    toy_manifest({"a": 1}).put(store)
    found = ToyManifest.read(store)
    assert found == toy_manifest({"a": 1})

    for change, said in (
        ({"made_from": {"a": 2}}, "fingerprint"),
        ({"version": 2}, "version 2; this reads toy version 1"),
        ({"surprise": 1}, "surprise"),
    ):
        data = json.loads(store.read("manifest.json")) | change
        store.put("manifest.json", json.dumps(data).encode())
        with pytest.raises(RequestError, match=said):
            ToyManifest.read(store)
        toy_manifest({"a": 1}).put(store)


def test_another_recipes_artifact_is_refused_with_what_differs(tmp_path: Path) -> None:
    found = toy_manifest({"targets": {"k": 64}, "sequences": "abc"})
    with pytest.raises(RequestError, match=r"targets\.k: 64, not 32"):
        refuse_other(found, {"targets": {"k": 32}, "sequences": "abc"}, Store(str(tmp_path)), "a cache")


def test_differences_name_what_is_on_one_side_only() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "c": 3}) == ["b: 2, not nothing", "c: nothing, not 3"]
