"""Ranks that are there in a second or two: forked from a process that has imported what they need.

Each is a process as a launcher starts it, with torch's variables in its environment, and runs the worker function.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.buckets import free_port

DEADLINE = 240.0
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.rank_imports"])


class Ranks:
    """Of one training, started when made. `folder`, of this run alone, has notes, logs and progress.

    environments: one a rank, or none. work: what they do in the worker function's place.
    """

    def __init__(
        self,
        recipe: dict[str, Any],
        folder: Path,
        world: int,
        environments: list[dict[str, str]] | None = None,
        work: Callable[[str], None] | None = None,
    ) -> None:
        from distributed_kd.launch.ranks import Notes
        from distributed_kd.recipe import parse

        folder.mkdir(parents=True)
        self.folder = folder
        self._notes = Notes(str(folder))
        self._notes.begin(parse(recipe), "student")
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
        place |= {"TMPDIR": str(folder), "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"}
        self.processes: list[BaseProcess] = []
        for rank in range(world):
            own = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (environments[rank] if environments else {})
            self.processes.append(_FORKS.Process(target=_run, args=(str(folder), own, work), daemon=True))
            self.processes[-1].start()

    def steps(self) -> int:
        """How many have been taken, those of a run before this one among them."""
        for file in self.folder.glob("dkd-rank-*/progress.json"):
            return int(json.loads(file.read_text())["done"])
        return 0

    def kill(self) -> None:
        """SIGKILL to all of them."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def wait(self) -> None:
        """Until they have ended well."""
        deadline = time.monotonic() + DEADLINE
        for process in self.processes:
            process.join(deadline - time.monotonic())
        codes = [process.exitcode for process in self.processes]
        if codes != [0] * len(codes):
            self.kill()
            raise AssertionError(f"ranks ended with {codes}\n{self.said()}")

    def is_running(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def said(self) -> str:
        return "\n".join(file.read_text() for file in sorted(self.folder.glob("rank-*.log")))


def _run(notes: str, environment: dict[str, str], deed: Callable[[str], None] | None) -> None:
    os.environ.update(environment)
    tempfile.tempdir = environment["TMPDIR"]
    log = os.open(f"{notes}/rank-{environment['RANK']}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.pop("DKD_QUIET", None)
    from distributed_kd.launch.processors import set_processors
    from distributed_kd.student.worker import work

    set_processors(os.environ, int(environment["WORLD_SIZE"]))
    (deed or work)(notes)
