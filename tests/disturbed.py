"""What the tests that disturb a capture share: what it has written, who works on it, and waiting for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest

from distributed_kd.recipe import Recipe
from tests.commands import ROOT


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


def files_of(folder: Path) -> dict[str, bytes]:
    """What a finished cache is read from: its shards, the index that lists them and what the manifest says of both."""
    names = ("manifest.json", "index.arrow", "tables.bin")
    return shards_of(folder) | {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def writes_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Of the shards that have a receipt, the file and when it was written: one that is written again has other ones."""
    found = {}
    for path in (folder / "receipts").glob("*.json"):
        status = (folder / "shards" / f"{path.stem}.arrow").stat()
        found[path.stem] = (status.st_ino, status.st_mtime_ns)
    return found


def add_finished(finished: dict[str, tuple[int, int]], folder: Path) -> None:
    """Adds the shards that are finished now; those that were before must be the files that they were."""
    now = writes_of(folder)
    again = {shard for shard, write in finished.items() if now.get(shard) != write}
    assert not again, f"finished shards were computed again: {sorted(again)}"
    finished |= now


@contextmanager
def written_receipts(folder: Path) -> Iterator[dict[str, set[tuple[int, int]]]]:
    """By shard the receipts that appear while the block runs, as inode and time: one written anew is another file."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    ended = Event()

    def look() -> None:
        while not ended.wait(0.01):
            for path in (folder / "receipts").glob("*.json"):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    found[path.stem].add((status.st_ino, status.st_mtime_ns))

    looking = Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        ended.set()
        looking.join()


def receipts_of(folder: Path) -> int:
    return len(list((folder / "receipts").glob("*.json")))


def until(condition: Callable[[], Any], what: str, seconds: float = 200.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)


def replicas() -> list[psutil.Process]:
    """Of the clusters that this process started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith("ray::Replica"):
                found.append(process)
    return found


def start_driver(recipe: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment.pop("DKD_QUIET", None)
    return subprocess.Popen(
        [sys.executable, "-m", "distributed_kd.cli", "cache", recipe], env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def said_by_capture(recipe: Recipe, disturb: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a capture in this process says while `disturb` runs beside it; it must end well."""
    from distributed_kd.teacher import capture as stage

    lines: list[str] = []
    monkeypatch.setattr(stage.console, "say", lines.append)
    disturber = Thread(target=disturb)
    disturber.start()
    assert stage.capture(recipe).index is not None
    disturber.join()
    return lines
