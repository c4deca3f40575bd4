"""A capture over two hosts whose link is cut, and that lose whatever can be lost.

    DKD_SEED=7 DKD_ROUNDS=20 pytest -m "" -s tests/hosts

draws other rounds, and more of them; the seed and what was drawn are printed, as in
benchmarks/results/capture-kills.txt.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests import toys
from tests.commands import dkd, write_recipe
from tests.disturbed import add_finished, files_of, receipts_of, until
from tests.hosts.two_hosts import ADDRESS, TwoHosts, two_hosts, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]

SEED = int(os.environ.get("DKD_SEED", "20261125"))
ROUNDS = int(os.environ.get("DKD_ROUNDS", "10"))
CUT_SECONDS = 30.0
# What a driver may take from any disturbance to its end, or to the next receipt.
DEADLINE = 180.0


@dataclass(frozen=True)
class Job:
    """What all tests of this file capture: its recipe, its cache, and what that holds when nothing is disturbed."""

    recipe: Path
    cache: Path
    undisturbed: dict[str, bytes]


@pytest.fixture(scope="module")
def prepared(toy_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One sequence a shard and many of them, so that there is a while to disturb; captured on this machine alone."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "documents").mkdir()
    data = {
        "name": "hosts",
        "workdir": str(folder / "work"),
        "corpus": {
            "source": str(toys.write_corpus(folder / "documents", documents=75)), "sequence_length": 16,
            "shard_sequences": 1, "validation_fraction": 0.1,
        },
        "teachers": [{"model": str(toy_teacher), "dtype": "float32"}],
        "targets": {"k": 8},
        "capture": {
            "replicas": "auto", "batch_tokens": 64, "head_chunk": 16, "stall_minutes": 5.0, "codec": "compact-1",
            "table_positions": 600,
        },
        "student": {"model": str(toy_teacher)},
        "trainer": {"steps": 1},
    }  # fmt: skip
    recipe = write_recipe(folder, data)
    for stage in ("prepare", "cache"):
        done = dkd(stage, recipe)
        assert done.returncode == 0, done.stderr
    cache = folder / "work" / "cache"
    files = files_of(cache)
    assert len(files) > 200
    data["capture"] |= {"address": ADDRESS}
    return Job(write_recipe(folder, data), cache, files)


@pytest.fixture
def job(prepared: Job) -> Job:
    """With nothing captured."""
    shutil.rmtree(prepared.cache)
    return prepared


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    with two_hosts() as made:
        made.start_head()
        made.start_node()
        yield made


@contextmanager
def held(processes: list[psutil.Process]) -> Iterator[None]:
    """Stopped while the block runs, so that the machine's speed does not decide what is disturbed."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    yield
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def ends(driver: subprocess.Popen[str]) -> str:
    """What the driver says, which ends well and in time."""
    said = driver.communicate(timeout=DEADLINE)[1]
    assert driver.returncode == 0, said
    return said


def fails(driver: subprocess.Popen[str], line: str) -> None:
    said = driver.communicate(timeout=DEADLINE)[1]
    assert driver.returncode == 1, said
    assert "Traceback" not in said, said
    lines = [line for line in said.splitlines() if line.startswith("dkd: ")]
    assert len(lines) == 1 and line in lines[0], said
    assert "run the same command" in lines[0]


def test_a_link_that_is_cut_for_30_seconds_and_then_for_good(hosts: TwoHosts, job: Job) -> None:
    cache = job.cache
    driver = hosts.start_driver(job.recipe)
    until(lambda: hosts.a.replicas() and hosts.b.replicas() and receipts_of(cache) > 5, "replicas on both hosts")
    finished: dict[str, tuple[int, int]] = {}
    with held(hosts.a.replicas()):
        add_finished(finished, cache)
        hosts.cut()
        time.sleep(CUT_SECONDS)
        hosts.restore()
        before = receipts_of(cache)
        assert driver.poll() is None
        # Host a's replica is held: only host b's can add to them.
        until(lambda: receipts_of(cache) > before + 3, "a shard of host b, once its link is there again", DEADLINE)
    with held(hosts.a.replicas()):
        hosts.cut()
        time.sleep(3.0)  # host b finishes what it has in work, and nobody hears of it: it must not be done again
        add_finished(finished, cache)
    said = ends(driver)
    assert "was lost" in said, said
    assert files_of(cache) == job.undisturbed
    add_finished(finished, cache)
    hosts.restore()  # what host b still has to say, it says now
    until(lambda: not hosts.b.replicas(), "the end of host b's replicas", DEADLINE)
    assert files_of(cache) == job.undisturbed


@pytest.mark.long
def test_the_driver_ends_with_one_line_where_its_node_or_the_head_dies(hosts: TwoHosts, job: Job) -> None:
    cache = job.cache
    driver = hosts.start_driver(job.recipe)
    until(lambda: receipts_of(cache) > 5, "receipts")
    with held(hosts.replicas()):
        hosts.raylets(hosts.a)[0].kill()
        fails(driver, "the Ray node that this command runs on has died")
    hosts.restart()
    driver = hosts.start_driver(job.recipe)
    before = receipts_of(cache)
    until(lambda: receipts_of(cache) > before + 5 or driver.poll() is not None, "receipts")
    assert driver.poll() is None, driver.communicate()[1]
    with held(hosts.replicas()):
        hosts.gcs().kill()
        fails(driver, "the head of the Ray cluster has not answered for")
    hosts.restart()
    ends(hosts.start_driver(job.recipe))
    assert files_of(cache) == job.undisturbed


class Rounds:
    """Disturbs a capture, and mends what must be."""

    def __init__(self, hosts: TwoHosts, recipe: Path, drawn: random.Random) -> None:
        self.hosts, self.recipe, self.drawn = hosts, recipe, drawn
        self.driver = hosts.start_driver(recipe)

    def joins(self) -> None:
        self.hosts.start_node()

    def leaves(self) -> None:
        """Host b's last node that came; one comes when there would be none."""
        self.hosts.raylets(self.hosts.b)[-1].terminate()
        if len(self.hosts.raylets(self.hosts.b)) < 2:
            self.joins()

    def replica(self) -> None:
        self.drawn.choice(self.hosts.replicas()).kill()

    def raylet(self) -> None:
        self.drawn.choice(self.hosts.raylets(self.hosts.b)).kill()
        self.joins()

    def kill_driver(self) -> None:
        self.driver.kill()
        self.driver.communicate()
        self.driver = self.hosts.start_driver(self.recipe)

    def own_raylet(self) -> None:
        self.hosts.raylets(self.hosts.a)[0].kill()
        fails(self.driver, "the Ray node that this command runs on has died")
        self._begin_again()

    def head(self) -> None:
        self.hosts.gcs().kill()
        fails(self.driver, "the head of the Ray cluster has not answered for")
        self._begin_again()

    def link(self) -> None:
        self.hosts.cut()
        time.sleep(self.drawn.uniform(1.0, 10.0))
        self.hosts.restore()

    def _begin_again(self) -> None:
        self.hosts.restart()
        self.driver = self.hosts.start_driver(self.recipe)


KINDS = ("joins", "leaves", "replica", "raylet", "kill_driver", "own_raylet", "head", "link")


@pytest.mark.long
@pytest.mark.timeout(300 + 120 * ROUNDS)
def test_rounds_drawn_at_random(hosts: TwoHosts, job: Job) -> None:
    print(f"DKD_SEED={SEED} DKD_ROUNDS={ROUNDS}")
    drawn = random.Random(SEED)
    cache = job.cache
    rounds = Rounds(hosts, job.recipe, drawn)
    finished: dict[str, tuple[int, int]] = {}
    left: list[str] = []
    begun = time.monotonic()
    for number in range(1, ROUNDS + 1):
        left = left or drawn.sample(KINDS, len(KINDS))  # none twice before each has been once
        kind = left.pop()
        wanted = len(finished) + drawn.randrange(1, 9)
        until(lambda wanted=wanted: receipts_of(cache) >= wanted and hosts.replicas(), "receipts", DEADLINE)
        with held(hosts.replicas()):
            add_finished(finished, cache)
            assert rounds.driver.poll() is None, f"finished before {kind}: {rounds.driver.communicate()[1]}"
            print(f"round {number}: {kind} at {len(finished)} shards, {time.monotonic() - begun:.0f} s", flush=True)
            getattr(rounds, kind)()
    said = ends(rounds.driver)
    print(f"done after {time.monotonic() - begun:.0f} s: {len(job.undisturbed)} files\n{said}", flush=True)
    assert files_of(cache) == job.undisturbed
    add_finished(finished, cache)
    assert dkd("verify", cache).returncode == 0
