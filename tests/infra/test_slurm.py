"""infra/slurm on a real Slurm: submitted, told by a signal to stop, requeued, finished."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.store.lease import LEASE_NAME
from tests.commands import ROOT, dkd, write_recipe
from tests.disturbed import until
from tests.launch import slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(slurm.why_not() is not None, reason=slurm.why_not() or ""),
]
SCRIPTS = ROOT / "infra" / "slurm"
SMALL = ("--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=20")  # what this machine has


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm.slurm(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


class Job:
    """A script of ours in the queue; `log` is what all its runs said."""

    def __init__(self, variables: dict[str, str], folder: Path, *arguments: str | Path) -> None:
        self.log = folder / "log"
        dropped = ("DKD_QUIET", "RAY_ADDRESS", "RAY_AUTH_MODE")
        own = {name: value for name, value in os.environ.items() if name not in dropped}
        own |= variables | {"PYTHONPATH": str(ROOT), "DKD_VENV": str(Path(sys.executable).parent.parent)}
        self._environment = own
        options = ("--parsable", f"--output={self.log}", *SMALL)
        self.number = self.ask("sbatch", *options, *arguments).strip()

    def ask(self, *command: str | Path) -> str:
        done = subprocess.run(list(map(str, command)), env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def facts(self) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", self.number)))

    def stopped_when(self, begun: Callable[[], Any], *options: str) -> None:
        """It is told to stop once it has begun, and must have been requeued and have ended well."""
        until(lambda: begun() or self.ended(), f"work ({self.log})")
        assert not self.ended(), self.log.read_text()
        self.ask("scancel", *options, self.number)
        until(self.ended, f"the end ({self.log})", 400.0)
        facts = self.facts()
        assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "1"), self.said()
        assert self.said().count("not finished: requeued") == 1

    def ended(self) -> bool:
        return self.facts()["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")

    def said(self) -> str:
        return self.log.read_text()


def test_a_training_is_stopped_requeued_and_finished(
    one_node: dict[str, str], prepared_recipe: dict[str, Any], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(prepared_recipe["workdir"], work)
    trainer = prepared_recipe["trainer"] | {"steps": 200, "checkpoint_every": 10}
    del trainer["processes"]
    recipe = write_recipe(tmp_path, prepared_recipe | {"trainer": trainer, "workdir": "taken/from/the/command"})
    job = Job(one_node, tmp_path, "--ntasks-per-node=2", SCRIPTS / "train.sbatch", recipe, work)
    job.stopped_when(lambda: list(work.glob("student/checkpoints/step-*")), "--signal=USR1")
    found = re.search(r"stopped after step (\d+), which is saved", job.said())
    assert found is not None and 9 <= int(found[1]) < 200, job.said()  # counted from 0: step-10 has been begun
    assert json.loads((work / "student" / "manifest.json").read_text())["steps"] == 200
    metrics = [json.loads(line)["step"] for line in (work / "student" / "metrics.jsonl").read_text().splitlines()]
    assert metrics == list(range(200)), "no step was taken twice"


def submit_capture(variables: dict[str, str], recipe: dict[str, Any], folder: Path, *options: str) -> tuple[Job, Path]:
    """The capture of prepared sequences in the queue, and its workdir."""
    path = write_recipe(folder, recipe)
    work = Path(recipe["workdir"])
    assert dkd("prepare", path).returncode == 0
    return Job(variables, folder, *options, "--ntasks-per-node=1", SCRIPTS / "capture.sbatch", path, work), work


@pytest.mark.long  # a minute or two for the branch of a host that is not the first
def test_a_capture_on_two_nodes(
    toy_recipe: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The second node's Ray joins the first's, and both have replicas."""
    toy_recipe["capture"] = toy_recipe.get("capture", {}) | {"replicas": 2}
    with slurm.slurm(tmp_path_factory.mktemp("slurm"), nodes=2) as variables:
        job, work = submit_capture(variables, toy_recipe, tmp_path, "--nodes=2")
        until(job.ended, f"the end ({job.log})", 500.0)
        facts = job.facts()
    assert (facts["JobState"], facts["ExitCode"], facts["NumNodes"]) == ("COMPLETED", "0:0", "2"), job.said()
    assert "2 replicas" in job.said(), "one processor a node: each has one"
    assert json.loads(dkd("inspect", work / "cache", "--json").stdout)["missing_shards"] == []


@pytest.mark.long  # the training's script is stopped and requeued in the same way
def test_a_capture_is_stopped_requeued_and_finished(
    one_node: dict[str, str], toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    job, work = submit_capture(one_node, toy_recipe, tmp_path)
    job.stopped_when((work / "cache" / "manifest.json").exists, "--batch", "--signal=TERM")
    assert json.loads(dkd("inspect", work / "cache", "--json").stdout)["missing_shards"] == []


@pytest.mark.long  # of the same script
def test_a_capture_whose_cluster_ends_before_a_shard_is_done_is_not_requeued(
    one_node: dict[str, str], toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """It would end so again, without end."""
    job, work = submit_capture(one_node, toy_recipe, tmp_path)
    until((work / "cache" / LEASE_NAME).exists, f"the driver ({job.log})", 200.0)  # it has yet to load the teacher
    job.ask("scancel", "--signal=KILL", f"{job.number}.0")
    until(job.ended, f"the end ({job.log})", 100.0)
    facts = job.facts()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "1:0", "0"), job.said()
    assert "no shard was done: not requeued" in job.said()
