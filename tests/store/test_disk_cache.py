"""Files by their digest, shared by processes: fetched once, whole, bounded, and good whenever they are read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distributed_kd.errors import RequestError
from distributed_kd.store.digest import sha256
from distributed_kd.store.disk_cache import DiskCache
from tests.commands import ROOT

# Reads one digest; its fetch notes that it was asked and takes a while.
_READER = """
import sys, time
from pathlib import Path
from distributed_kd.store.digest import sha256
from distributed_kd.store.disk_cache import DiskCache
folder, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
data = b"shard" * 1000
def fetch():
    with log.open("a") as file:
        file.write("asked\\n")
    time.sleep(seconds)
    return data
assert DiskCache(folder, 1 << 20).read(sha256(data), fetch) == data
"""


def reader(folder: Path, log: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _READER, str(folder), str(log), str(seconds)], cwd=ROOT)


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (folder / "files").iterdir()}


def test_of_processes_that_want_a_file_at_once_one_fetches_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    readers = [reader(tmp_path / "cache", log, 0.5) for _ in range(4)]
    assert [one.wait(60) for one in readers] == [0] * 4
    assert log.read_text() == "asked\n"


def test_a_process_killed_while_it_fetches_leaves_the_others_going(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = reader(tmp_path / "cache", log, 600)
    while not log.exists():
        time.sleep(0.01)
    second = reader(tmp_path / "cache", log, 0)
    time.sleep(0.3)
    os.kill(first.pid, signal.SIGKILL)
    assert second.wait(60) == 0
    first.wait()
    assert log.read_text() == "asked\n" * 2
    assert len(files(tmp_path / "cache")) == 1


def content(number: int) -> bytes:
    return bytes([number]) * 100


def read(cache: DiskCache, number: int) -> bool:
    """Whether it had to be fetched."""
    asked = []
    data = cache.read(sha256(content(number)), lambda: (asked.append(1), content(number))[1])
    assert data == content(number)
    return bool(asked)


def test_beyond_the_bound_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 300)
    for number in range(3):
        assert read(cache, number)
        time.sleep(0.01)
    assert not read(cache, 0)
    time.sleep(0.01)
    assert read(cache, 3)
    assert set(files(tmp_path)) == {sha256(content(number)) for number in (2, 0, 3)}
    assert [read(cache, number) for number in (2, 0, 3)] == [False] * 3
    assert read(cache, 1)


def test_one_file_larger_than_the_bound_is_kept_until_the_next(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10)
    assert read(cache, 0) and not read(cache, 0)
    assert read(cache, 1) and read(cache, 0)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:9] + b"x" + data[10:], lambda data: b""])
def test_a_file_that_is_not_what_its_name_says_is_fetched_again(tmp_path: Path, damage: object) -> None:
    cache = DiskCache(tmp_path, 1000)
    read(cache, 0)
    path = tmp_path / "files" / sha256(content(0))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert read(cache, 0)
    assert not read(cache, 0)


def test_what_a_fetch_raises_is_raised_and_nothing_is_kept(tmp_path: Path) -> None:
    def fetch() -> bytes:
        raise RequestError("shard 7 is damaged")

    cache = DiskCache(tmp_path, 1000)
    with pytest.raises(RequestError, match="shard 7"):
        cache.read(sha256(content(0)), fetch)
    assert not files(tmp_path)
    assert read(cache, 0)


def test_what_a_killed_writer_left_goes_when_the_next_begins(tmp_path: Path) -> None:
    DiskCache(tmp_path, 1000)
    left = tmp_path / "files" / f"{sha256(content(0))}.{'0' * 32}.tmp"
    left.write_bytes(b"half")
    DiskCache(tmp_path, 1000)
    assert not left.exists()
