"""Checkpoints of a workdir in a bucket outlive the disks of their hosts, which get from it what they lack."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.store.filesystem import Store
from distributed_kd.store.folder import put_folder
from distributed_kd.student.checkpoint_files import tag_of
from tests.disturbed import until
from tests.ranks import Ranks
from tests.store.faulty import Fault, FaultyProxy

pytestmark = pytest.mark.slow

STEPS, EVERY = 60, 5
BLOCKED = 30  # the checkpoint whose marker does not get through
TRAINER = {"steps": STEPS, "checkpoint_every": EVERY, "micro_batch": 2, "learning_rate": 1e-3}
COMMON = "mp_rank_00_model_states.pt"
Start = Callable[..., Ranks]


@pytest.fixture
def proxy(bucket: dict[str, str]) -> Iterator[FaultyProxy]:
    """Between the ranks and the bucket."""
    made = FaultyProxy(int(bucket["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def start(
    bucket: dict[str, str],
    proxy: FaultyProxy,
    prepared_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Start:
    """Starts two ranks on a workdir of the bucket in which sequences and cache are; `disks`: of the two hosts."""
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    runs: list[Ranks] = []

    def started(workdir: str, disks: tuple[str, str] = ("disk", "disk"), **trainer: Any) -> Ranks:
        store = Store(workdir)
        if not store.exists("cache/manifest.json"):
            for name in ("sequences", "cache"):
                put_folder(Path(prepared_recipe["workdir"]) / name, store, name)
        own = [
            {**bucket, "AWS_ENDPOINT_URL": proxy.endpoint, "AWS_MAX_ATTEMPTS": "1", "DKD_CACHE": str(tmp_path / disk)}
            for disk in disks
        ]
        said = prepared_recipe | {"workdir": workdir, "trainer": prepared_recipe["trainer"] | TRAINER | trainer}
        runs.append(Ranks(said, tmp_path / f"run-{len(runs)}", 2, own))
        return runs[-1]

    return started


def export_of(workdir: str) -> bytes:
    return Store(workdir).read("student/export/model.safetensors")


def read_from(proxy: FaultyProxy) -> list[str]:
    """The checkpoints' files that were downloaded, like `step-00000005/FILE`."""
    found = (re.search(r"GET .*/checkpoints/(step-\d+/[^?]*)", request) for request in proxy.requests)
    return sorted({one[1] for one in found if one})


def is_uploaded(proxy: FaultyProxy, step: int) -> bool:
    return any(re.search(rf"PUT .*/checkpoints/step-{step:08d}.json", request) for request in proxy.requests)


def train_until_the_marker(start: Start, proxy: FaultyProxy, workdir: str, *disks: str, **trainer: Any) -> None:
    """All ranks are killed between the upload of a checkpoint and its marker."""
    proxy.requests = []
    proxy.faults = [Fault("stopped put", "PUT", f"checkpoints/step-{BLOCKED:08d}.json", times=1000)]
    ranks = start(workdir, disks or ("disk", "disk"), **trainer)
    until(lambda: is_uploaded(proxy, BLOCKED) or not ranks.is_running(), "the marker")
    assert ranks.is_running(), ranks.said()
    until(lambda: ranks.steps() >= BLOCKED + EVERY, "the next checkpoint's step")  # training goes on meanwhile
    ranks.kill()
    proxy.faults, proxy.requests = [], []
    there = Store(f"{workdir}/student/checkpoints")
    assert there.list("") == [f"step-{step:08d}.json" for step in (BLOCKED - 2 * EVERY, BLOCKED - EVERY)]
    assert tag_of(BLOCKED) in there.folders("")


def test_a_new_host_goes_on_from_the_newest_that_is_complete_in_the_bucket(
    start: Start, proxy: FaultyProxy, tmp_path: Path
) -> None:
    whole, work = "s3://bucket/whole", "s3://bucket/work"
    ranks = start(whole, ("other", "other"))
    ranks.wait()
    kept = [tag_of(step) for step in (STEPS - 2 * EVERY, STEPS - EVERY)]
    assert Store(f"{whole}/student/checkpoints").folders("") == kept
    assert Store(f"{whole}/student/checkpoints").list("") == [f"{name}.json" for name in kept]

    train_until_the_marker(start, proxy, work)
    shutil.rmtree(tmp_path / "disk")
    start(work).wait()
    assert {name.split("/")[0] for name in read_from(proxy)} == {tag_of(BLOCKED - EVERY)}
    assert export_of(work) == export_of(whole)
    assert Store(f"{work}/student/checkpoints").folders("") == kept

    Store(work).delete("student/manifest.json")
    ranks = start(work, learning_rate=2e-3)
    until(lambda: not any(process.is_alive() for process in ranks.processes), "the end")
    assert [process.exitcode for process in ranks.processes] == [2, 2]
    assert f"{work}/student/checkpoints/step-{STEPS - EVERY:08d}.json is of a student made from something else" in (
        ranks.said()
    )
    assert "trainer.learning_rate: 0.001, not 0.002" in ranks.said()


@pytest.mark.parametrize("stage", [1, 3])
def test_hosts_with_disks_of_their_own_agree_on_a_checkpoint(
    start: Start, proxy: FaultyProxy, tmp_path: Path, stage: int
) -> None:
    """The newest while all have it; one that all can have when a host is new, which gets its own ranks' files alone."""
    whole, work = f"s3://bucket/whole-{stage}", f"s3://bucket/work-{stage}"
    said = {"deepspeed": {"zero_optimization": {"stage": stage}}}
    start(whole, ("other", "other"), **said).wait()
    train_until_the_marker(start, proxy, work, "a", "b", **said)

    # Below stage 3 all read a file that rank 0's host alone has on its disk; it is not the bucket's before its marker.
    newest, read = (BLOCKED, []) if stage == 3 else (BLOCKED - EVERY, [f"{tag_of(BLOCKED - EVERY)}/{COMMON}"])
    ranks = start(work, ("a", "b"), checkpoint_every=0, **said)
    until(lambda: ranks.steps() or not ranks.is_running(), "a step")
    ranks.kill()
    assert ranks.steps() > newest and read_from(proxy) == read, ranks.said()

    shutil.rmtree(tmp_path / "b")
    start(work, ("a", "b"), **said).wait()
    read = [name.partition("/")[2] for name in read_from(proxy)]
    assert read and all("zero_pp_rank_1" in name or name == COMMON for name in read)
    assert export_of(work) == export_of(whole)


def test_a_stop_does_not_wait_for_a_bucket_that_does_not_answer(start: Start, proxy: FaultyProxy) -> None:
    """An upload hangs; the last step is saved on the disks all the same, and a line says where it is not."""
    proxy.faults = [Fault("stopped put", "PUT", "checkpoints/", times=1000)]
    work = "s3://bucket/hanging"
    ranks = start(work, checkpoint_every=STEPS // 2, steps=10 * STEPS)
    until(lambda: ranks.steps() > STEPS // 2 or not ranks.is_running(), "steps after a checkpoint")
    assert ranks.is_running(), ranks.said()
    for process in ranks.processes:
        os.kill(process.pid or 0, signal.SIGTERM)
    begun = time.monotonic()
    ranks.wait()
    assert time.monotonic() - begun < 30.0
    stopped = re.search(r"dkd: stopped after step (\d+), which is saved", ranks.said())
    assert stopped is not None, ranks.said()
    last = int(stopped[1]) + 1
    assert f"checkpoint {tag_of(last)} is not in {work}/student/checkpoints after 5 more s" in ranks.said()
    assert Store(f"{work}/student/checkpoints").list("") == []
    proxy.faults = []
    ranks = start(work, checkpoint_every=0, steps=10 * STEPS)
    until(lambda: ranks.steps() > 0 or not ranks.is_running(), "a step")
    ranks.kill()
    assert ranks.steps() > last, ranks.said()


def test_a_bucket_that_takes_no_checkpoints_is_a_line_and_training_goes_on(
    start: Start, proxy: FaultyProxy, tmp_path: Path
) -> None:
    whole, work = "s3://bucket/taken", "s3://bucket/refused"
    start(whole, ("other", "other")).wait()
    proxy.faults = [Fault("403", "PUT", "checkpoints/", times=1000)]
    ranks = start(work)
    ranks.wait()
    lines = [line for line in ranks.said().splitlines() if "did not get into" in line]
    assert len(lines) == STEPS // EVERY - 1
    assert lines[0].startswith(f"train: checkpoint {tag_of(EVERY)} did not get into {work}/student/checkpoints: "), (
        lines
    )
    assert "Forbidden" in lines[0] and "; training goes on" in lines[0], lines
    assert export_of(work) == export_of(whole)
