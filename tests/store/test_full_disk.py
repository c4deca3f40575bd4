"""A disk that is full: one readable line, nothing half-written, and the same command goes on once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.cache.manifest import CacheManifest
from distributed_kd.cache.receipts import Receipts
from distributed_kd.errors import FullDisk
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import read_known, shard_name
from tests.commands import dkd, said, write_recipe

MEGABYTES = 16


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def leave(disk: Path, free: int) -> None:
    """Fills the disk but for so many bytes."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    state = os.statvfs(disk)
    ballast.write_bytes(bytes(state.f_bavail * state.f_frsize - free))


def test_what_does_not_fit_leaves_the_file_as_it_was(disk: Path) -> None:
    store = Store(str(disk / "work"))
    store.put("file", b"former")
    leave(disk, 1 << 20)
    with pytest.raises(
        FullDisk, match=f"{disk}/work/file cannot be written: the disk is full .*No space left"
    ) as caught:
        store.put("file", bytes(2 << 20))
    assert "\n" not in str(caught.value) and "free some space and run the same command" in str(caught.value)
    assert caught.value.exit_code == 1
    assert store.read("file") == b"former"
    assert os.listdir(disk / "work") == ["file"]
    store.put("file", bytes(1 << 19))


@pytest.mark.slow
def test_stages_on_a_disk_that_fills_go_on_when_there_is_room(
    disk: Path, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    toy_recipe["corpus"]["shard_sequences"] = 1
    toy_recipe["workdir"] = str(disk / "work")
    recipe = write_recipe(tmp_path, toy_recipe)
    for stage, room in (("prepare", 200_000), ("cache", 300_000)):
        leave(disk, room)
        done = dkd(stage, recipe)
        assert done.returncode == 1, done.stderr
        assert f"{disk}/work/" in said(done) and "the disk is full" in said(done)
        assert "No space left on device" in said(done) and "run the same command" in said(done)
        assert done.stderr.count(" failed: ") <= 1, "it went on with other shards"
        if stage == "cache":
            store = Store(str(disk / "work" / "cache"))
            manifest = CacheManifest.read(store)
            assert manifest is not None and manifest.index is None
            receipts = Receipts.read_all(store, manifest.fingerprint, manifest.shards)
            assert 5 < len(receipts) < manifest.shards
            for shard, receipt in receipts.items():
                read_known(store, shard_name(shard), receipt.entry, "")
            inodes = {shard: (disk / "work" / "cache" / shard_name(shard)).stat().st_ino for shard in receipts}
        (disk / "ballast").unlink()
        assert dkd(stage, recipe).returncode == 0
    assert {shard: (disk / "work" / "cache" / shard_name(shard)).stat().st_ino for shard in receipts} == inodes
    other = write_recipe(tmp_path, toy_recipe | {"workdir": str(tmp_path / "other")})
    for stage in ("prepare", "cache"):
        assert dkd(stage, other).returncode == 0
    assert files_below(disk / "work") == files_below(tmp_path / "other")


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file, temporary ones as well, but for those that name the folder or tell the time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("recipe.yaml", "run.json")
    }
