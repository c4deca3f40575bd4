"""Ray Train's workers: one that is killed restarts by itself, and the weights are those of an undisturbed run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.commands import ROOT, dkd, write_recipe
from tests.disturbed import until

pytestmark = pytest.mark.slow

EXPORT = "student/export/model.safetensors"
STEPS = 400


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes of one processor each, so that two workers are on two of them."""
    environment = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ |= environment
    from ray.cluster_utils import Cluster

    made = Cluster()
    made.add_node(num_cpus=1, include_dashboard=False)
    made.add_node(num_cpus=1)
    yield made.address
    made.shutdown()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def recipe(captured_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """Prepared and captured, to be trained by two ranks without a baseline."""
    del captured_recipe["trainer"]["processes"]
    captured_recipe["trainer"] |= {"micro_batch": 2, "steps": STEPS, "checkpoint_every": 10}
    return write_recipe(tmp_path, captured_recipe)


def workers() -> list[psutil.Process]:
    """Processes of Ray Train that train, of this machine's clusters that belong to this test."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def start(recipe: Path, address: str, *overrides: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment.pop("DKD_QUIET", None)
    return subprocess.Popen(
        [
            sys.executable, "-m", "distributed_kd.cli", "train", recipe, "trainer.launcher=ray", "trainer.workers=2",
            f"capture.address={address}", *overrides,
        ],
        env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_killed_worker_restarts_from_the_last_complete_checkpoint(cluster: str, recipe: Path, tmp_path: Path) -> None:
    work, one = tmp_path / "work", tmp_path / "one"
    shutil.copytree(work, one)
    assert dkd("train", recipe, "trainer.processes=2", f"workdir={one}").returncode == 0

    driver = start(recipe, cluster)
    checkpoints = work / "student" / "checkpoints"
    until(lambda: len(list(checkpoints.glob("step-*.json"))) == 2 or driver.poll() is not None, "two checkpoints")
    killed = workers()
    assert len(killed) == 2
    killed[1].kill()
    assert not (work / EXPORT).exists(), "it was over before it was disturbed; give it more steps"
    said = driver.communicate(timeout=300)[1]
    assert driver.returncode == 0, said
    assert "a rank was lost; the student goes on from the last checkpoint" in said, said
    assert (work / EXPORT).read_bytes() == (one / EXPORT).read_bytes()
    assert not (work / "student" / "launch").exists()


def test_what_a_worker_refuses_is_one_line_and_is_not_tried_again(cluster: str, recipe: Path, tmp_path: Path) -> None:
    shard = next((tmp_path / "work" / "cache" / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 8
    shard.write_bytes(data)
    driver = start(recipe, cluster)
    said = driver.communicate(timeout=300)[1]
    assert driver.returncode == 2, said
    lines = [line for line in said.splitlines() if line.startswith("dkd: ")]
    assert len(lines) == 1 and f"{shard} is damaged" in lines[0], said


def test_a_driver_that_is_asked_to_stop_saves_the_step_and_goes_on_from_there(
    cluster: str, recipe: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "work" / "student" / "checkpoints"
    driver = start(recipe, cluster, "trainer.steps=5000", "trainer.checkpoint_every=0")
    until(lambda: (tmp_path / "work" / "student" / "launch" / "progress.json").exists() or driver.poll(), "a step")
    begun = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    said = driver.communicate(timeout=60)[1]
    seconds = time.monotonic() - begun
    assert driver.returncode == 0, said
    stopped = re.search(r"dkd: stopped after step (\d+), which is saved; the same command goes on from there", said)
    assert stopped is not None, said
    assert [path.stem for path in checkpoints.glob("step-*.json")] == [f"step-{int(stopped[1]) + 1:08d}"]
    print(f"stopped after {seconds:.1f} s")
    assert seconds < 30.0


@pytest.mark.long
def test_a_lost_worker_is_named_where_none_may_fail(cluster: str, recipe: Path, tmp_path: Path) -> None:
    driver = start(recipe, cluster, "trainer.max_failures=0", "trainer.timeout_minutes=0.5")
    checkpoints = tmp_path / "work" / "student" / "checkpoints"
    until(lambda: any(checkpoints.glob("step-*.json")) or driver.poll() is not None, "a checkpoint")
    workers()[1].kill()
    said = driver.communicate(timeout=300)[1]
    assert driver.returncode == 1, said
    lines = [line for line in said.splitlines() if line.startswith("dkd: ")]
    assert len(lines) == 1 and "the same command goes on from the last checkpoint" in lines[0], said
    assert "rank " in lines[0]
    print(lines[0])
