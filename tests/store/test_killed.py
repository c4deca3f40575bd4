"""SIGKILL at every step of every kind of write: the old state or the new one, and the same work ends with the new."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distributed_kd import cache
from distributed_kd.cache.manifest import RECEIPTS, CacheManifest, Receipt, put_tables, read_tables
from distributed_kd.cache.receipts import Receipts
from distributed_kd.cache.writer import commit
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import Store
from distributed_kd.store.folder import put_folder
from distributed_kd.store.index import INDEX_NAME, ShardEntry, read_shard, shard_name
from distributed_kd.store.whole import remove_leftovers, whole_file
from tests.cache.caches import make_cache
from tests.store.killing import kills, steps_of


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL loses nothing that the system was given. That it is asked to put it on the disk is among the steps."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


ONE_FILE = ["open", "write", "flush", "fsync", "replace", "fsync"]


def files_of(folder: Path) -> dict[str, bytes]:
    """The files under final names."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".tmp")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def leftovers_of(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


def attempt(read: Callable[[], Any]) -> tuple[Any, str]:
    """(what is read, ""), or (None, why it is refused)."""
    try:
        return read(), ""
    except RequestError as error:
        return None, str(error)


def kill_everywhere(
    folder: Path,
    before: dict[str, bytes],
    work: Callable[[], None],
    check: Callable[[], None],
    steps: list[str],
    between: dict[str, bytes] | None = None,
) -> None:
    """Kills `work` at each of its steps, each time on a folder of just the files `before`.

    After each, every final file is as before or as after the whole work (or as the work has it `between`), `check`
    passes, and the work done again gives what it gives undisturbed.
    """
    between = between or {}

    def restore() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for name, data in before.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    restore()
    assert steps_of(work) == steps
    after = files_of(folder)
    assert after != before
    restore()
    left = set()
    for place in kills(work, steps):
        found = files_of(folder)
        torn = [
            name for name, data in found.items() if data not in (before.get(name), after.get(name), between.get(name))
        ]
        lost = before.keys() - found.keys()
        assert not torn and not lost, f"{place}: {torn} are torn, {lost} are lost"
        check()
        left |= {len(leftovers_of(folder))}
        work()
        assert files_of(folder) == after, place
        Store(str(folder)).remove_leftovers(
            "", *{str(path.parent.relative_to(folder)) for path in leftovers_of(folder)}
        )
        assert not leftovers_of(folder), place
        restore()
    assert left == {0, 1}  # kills between making a file and renaming it are among them


@pytest.mark.parametrize("before", [{}, {"folder/file": b"old"}], ids=["new", "over another"])
def test_put(tmp_path: Path, before: dict[str, bytes]) -> None:
    store = Store(str(tmp_path / "store"))
    folders = [] if before else ["mkdir", "fsync"] * 2
    kill_everywhere(
        tmp_path / "store", before, lambda: store.put("folder/file", b"new" * 1000),
        lambda: None, [*folders, *ONE_FILE],
    )  # fmt: skip


def test_a_shard_then_its_receipt(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    store = Store(str(folder))
    make_cache(store, "compact-1")
    manifest = CacheManifest.read(store)
    assert manifest is not None
    manifest.model_copy(update={"index": None}).put(store)
    before = files_of(folder)
    shard, receipt = before.pop(shard_name(1)), Receipts.read_all(store, manifest.fingerprint, 3)[1]
    for name in (INDEX_NAME, f"{RECEIPTS}/00000001.json"):
        del before[name]

    def work() -> None:
        store.put(shard_name(1), shard)
        receipt.put(store)

    def check() -> None:
        receipts = Receipts.read_all(store, manifest.fingerprint, 3)
        assert receipts.keys() - {1} == {0, 2}
        for one in receipts.values():  # what has a receipt is there and whole
            read_shard(store, one.entry)

    kill_everywhere(folder, before, work, check, ONE_FILE * 2)


def test_tables(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    store = Store(str(folder))
    data = os.urandom(5000)
    reference = put_tables(store, data)

    def check() -> None:
        found, refused = attempt(lambda: read_tables(store, reference))
        assert found == data or "tables.bin is missing" in refused

    kill_everywhere(folder, {"manifest.json": b"{}"}, lambda: (put_tables(store, data), None)[1], check, ONE_FILE)


@pytest.mark.parametrize("index", ["none", "another"])
def test_commit(tmp_path: Path, index: str) -> None:
    """`another`: as repair commits, over the index of shards that came out otherwise."""
    folder = tmp_path / "cache"
    store = Store(str(folder))
    make_cache(store, "compact-1")
    finished = CacheManifest.read(store)
    assert finished is not None
    receipts = Receipts.read_all(store, finished.fingerprint, 3)
    if index == "none":
        store.delete(INDEX_NAME)
        begun = finished.model_copy(update={"index": None, "bytes_by_part": None, "mean_kept_mass": None})
        begun.put(store)
    else:
        wrong = Receipt(finished.fingerprint, ShardEntry(1, 4, 9, 9, "0" * 64), receipts[1].bytes_by_part, 9.0)
        others = Receipts(finished.fingerprint, 3)
        others.update({**receipts, 1: wrong})
        begun = commit(store, finished, others)
    before = files_of(folder)
    unfinished = finished.model_copy(update={"index": None, "bytes_by_part": None, "mean_kept_mass": None})
    unfinished.put(store)
    between = {"manifest.json": files_of(folder)["manifest.json"]}
    seen: set[str] = set()

    def check() -> None:
        manifest = CacheManifest.read(store)
        assert Receipts.read_all(store, finished.fingerprint, 3) == receipts
        opened, refused = attempt(lambda: cache.open(store))
        if opened is None:
            assert manifest == unfinished and "is an unfinished cache; run `dkd cache` to finish it" in refused
            seen.add("unfinished")
        else:
            assert len(opened) == 12 and manifest in (begun, finished)
            seen.add("finished" if manifest == finished else "begun")

    steps = ONE_FILE * (2 if index == "none" else 3)
    kill_everywhere(folder, before, lambda: (commit(store, begun, receipts), None)[1], check, steps, between)
    assert seen == {"unfinished", "finished"} | ({"begun"} if index == "another" else set())


def test_a_folder_of_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("config.json", "model.safetensors", "more/tokenizer.json"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(name.encode() * 1000)
    store = Store(str(tmp_path / "work"))

    def work() -> None:
        put_folder(source, store, "student/init")
        store.put("student/init/made_from.json", b"complete")

    def check() -> None:
        if store.exists("student/init/made_from.json"):
            assert files_of(source).items() <= files_of(tmp_path / "work" / "student" / "init").items()

    kill_everywhere(
        tmp_path / "work", {"student/init/config.json": b"of a run before"}, work, check,
        [*ONE_FILE * 2, "mkdir", "fsync", *ONE_FILE, *ONE_FILE],
    )  # fmt: skip


def test_leftovers_go_and_what_is_being_written_stays(tmp_path: Path) -> None:
    """A writer that is swept all the while, and one that stands still in the middle of its file."""
    store = Store(str(tmp_path))
    dead = tmp_path / f"file.{'0' * 32}.tmp"
    dead.write_bytes(b"half a fi")
    of_others = {"notes.tmp", "file.tmp"}
    for name in of_others:
        (tmp_path / name).write_bytes(b"not ours")
    with whole_file(str(tmp_path / "slow")) as file:
        file.write(b"half")
        sweeper = os.fork()
        if sweeper == 0:
            while True:
                remove_leftovers(str(tmp_path))
        try:
            deadline = time.monotonic() + 20
            while dead.exists() and time.monotonic() < deadline:
                time.sleep(0.001)
            for number in range(100):
                store.put("file", b"%d" % number)
            file.write(b" and half")
        finally:
            os.kill(sweeper, signal.SIGKILL)
            os.waitpid(sweeper, 0)
    assert store.read("slow") == b"half and half"
    assert store.read("file") == b"99"
    assert {path.name for path in leftovers_of(tmp_path)} == of_others


def test_a_file_taken_for_a_leftover_before_it_was_held_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = fcntl.flock, []

    def swept_first(file: Any, kind: int) -> None:
        calls.append(kind)
        if len(calls) == 1:
            remove_leftovers(str(tmp_path))
            assert not leftovers_of(tmp_path)
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    Store(str(tmp_path)).put("file", b"whole")
    assert calls == [fcntl.LOCK_EX, fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]
    assert files_of(tmp_path) == {"file": b"whole"}


def test_without_locks_files_are_written_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: Any, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    dead = tmp_path / f"file.{'0' * 32}.tmp"
    dead.write_bytes(b"half a fi")
    store = Store(str(tmp_path))
    store.put("file", b"whole")
    store.remove_leftovers("", "not-there", "file")
    assert files_of(tmp_path) == {"file": b"whole"}
    assert leftovers_of(tmp_path) == [dead]
