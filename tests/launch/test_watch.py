"""Ranks that are killed, stopped, hung or refuse: the others end with one line that names them, whatever they wait in.

Each rank is a process of its own, started as srun starts them: rank 0 has the store, and nobody ends the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.buckets import free_port
from tests.commands import ROOT
from tests.disturbed import until

pytestmark = pytest.mark.slow

MINUTES = 0.2  # 12 s: on a busy machine a process may not run for one of them
DEADLINE = 90.0
Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts ranks, all of them or those said, each with a deed or none: `start(2, {1: "hang"})`."""
    started: list[subprocess.Popen[str]] = []
    os.mkfifo(tmp_path / "pipe")

    def started_ranks(
        world: int, deeds: dict[int, str] | None = None, only: list[int] | None = None
    ) -> list[subprocess.Popen[str]]:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
        said = [f"{rank}={deed}" for rank, deed in (deeds or {}).items()]
        for rank in range(world) if only is None else only:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.launch.ranks_worker", str(MINUTES), str(tmp_path), *said],
                    env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)},
                    cwd=ROOT, stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        if only is None:
            until(lambda: all((tmp_path / str(rank)).exists() for rank in range(world)), "all ranks", DEADLINE)
        return started

    yield started_ranks
    for process in started:
        process.kill()
        process.communicate()


def lines_of(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    said = process.communicate(timeout=DEADLINE)[1]
    assert "Traceback" not in said, said
    return process.returncode, [line.removeprefix("dkd: ") for line in said.splitlines() if line.startswith("dkd: ")]


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)])
def test_ranks_that_die_or_stop_are_named_by_all_others(start: Start, how: signal.Signals) -> None:
    ranks = start(4)
    for lost in (1, 2):
        ranks[lost].send_signal(how)
    for left in (0, 3):
        code, lines = lines_of(ranks[left])
        assert code == 1
        assert len(lines) == 1 and lines[0].startswith("rank 1 on ") and ", rank 2 on " in lines[0], lines
        assert "rank 0" not in lines[0] and "rank 3" not in lines[0]


@pytest.mark.parametrize("how", [pytest.param(signal.SIGKILL, marks=pytest.mark.long), signal.SIGSTOP])
def test_the_rank_that_has_the_store_is_named_too(start: Start, how: signal.Signals) -> None:
    ranks = start(3)
    ranks[0].send_signal(how)
    for left in (1, 2):
        code, lines = lines_of(ranks[left])
        assert code == 1
        assert len(lines) == 1 and lines[0].startswith("rank 0 at 127.0.0.1:"), lines


def test_a_rank_that_hangs_is_named_with_its_place(start: Start) -> None:
    ranks = start(3, {1: "hang"})
    for process in ranks:
        code, lines = lines_of(process)
        assert code == 1
        assert len(lines) == 1 and lines[0].startswith("rank 1 on "), lines
        assert "did not come to a collective" in lines[0] and "store/filesystem.py" in lines[0]


@pytest.mark.parametrize(
    ("deed", "exit_code", "line"),
    [("refuse", 2, "this is not to be"), ("fail", 1, "failed: ValueError: a mistake")],
)
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 2])
def test_an_error_is_said_once_and_ends_all_with_its_code(
    start: Start, rank: int, deed: str, exit_code: int, line: str
) -> None:
    ends = [lines_of(process) for process in start(3, {rank: deed})]
    assert [code for code, _ in ends] == [exit_code] * 3
    assert [len(lines) for _, lines in ends] == [int(place == rank) for place in range(3)]
    assert line in ends[rank][1][0]


def test_ranks_that_take_long_and_finish_say_nothing(start: Start, tmp_path: Path) -> None:
    """One works alone for most of the timeout, with a heart that beats."""
    ranks = start(3, {1: "work long"})
    (tmp_path / "finish").touch()
    assert [lines_of(process) for process in ranks] == [(0, [])] * 3


def test_ranks_that_do_not_come_are_missed(start: Start) -> None:
    for process in start(3, only=[0, 1]):
        code, lines = lines_of(process)
        assert code == 1
        assert len(lines) == 1 and "of 3 does not come together with the others at 127.0.0.1:" in lines[0], lines
