"""Locks of compilations that were killed: removed, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distributed_kd.launch.abandoned_builds import remove_abandoned_locks

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed on Linux alone")

COMPILING = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("has it", flush=True)
time.sleep(100)
"""


@pytest.fixture
def compiling(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds the lock as torch does."""
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", COMPILING, lock], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "has it\n"
    return process, lock


def test_one_that_is_held_stays_and_that_of_a_killed_process_goes(
    compiling: tuple[subprocess.Popen[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    process, lock = compiling
    os.utime(lock, (0.0, 0.0))
    remove_abandoned_locks(tmp_path)
    assert lock.exists() and not capfd.readouterr().err
    process.kill()
    process.wait()
    remove_abandoned_locks(tmp_path)
    assert not lock.exists()
    assert f"removing {lock}, which a start that was killed left behind" in capfd.readouterr().err


def test_a_young_one_is_waited_for(compiling: tuple[subprocess.Popen[str], Path], tmp_path: Path) -> None:
    """Another host, whose processes are not seen here, may hold it."""
    process, lock = compiling
    process.kill()
    process.wait()
    lock.touch()
    begun = time.monotonic()
    remove_abandoned_locks(tmp_path, patience=0.5)
    assert not lock.exists() and time.monotonic() - begun > 0.4


def test_without_extensions_there_is_nothing_to_do(tmp_path: Path) -> None:
    remove_abandoned_locks(tmp_path / "none")
    remove_abandoned_locks(tmp_path)
