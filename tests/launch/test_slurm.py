"""`srun dkd train` under a real Slurm; the mapping of its variables also without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.errors import RequestError
from distributed_kd.launch.rank import first_host, place_of, ranks_here
from tests.commands import ROOT, dkd, write_recipe
from tests.launch import slurm

STEP = {
    "SLURM_JOB_ID": "41", "SLURM_STEP_ID": "2", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}  # fmt: skip


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("n1", "n1"), ("n1,m2", "n1"), ("n[07-09,12],m1", "n07"), ("n[3,5]", "n3"), ("rack[2-3]n[04-08]", "rack2n04"),
        ("gpu-a.example,gpu-b.example", "gpu-a.example"), ("n[010-012]-ib", "n010-ib"),
    ],
)  # fmt: skip
def test_the_first_of_slurms_hosts(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_a_step_of_several_tasks_is_ranks() -> None:
    expected = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu07", "MASTER_PORT": "12043"}
    assert place_of(STEP) == expected
    assert ranks_here(STEP) == 4
    other = place_of(STEP | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert other is not None
    assert other["MASTER_PORT"] == expected["MASTER_PORT"], "all ranks of a step must find the same port"
    assert place_of(STEP | {"SLURM_STEP_ID": "3"})["MASTER_PORT"] != expected["MASTER_PORT"]  # type: ignore[index]
    said = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert place_of(STEP | said) == expected | said


def test_a_task_with_one_gpu_of_its_own_calls_it_the_first() -> None:
    for visible, local in (("3", "0"), ("0,1", "1"), ("", "1")):
        place = place_of(STEP | {"CUDA_VISIBLE_DEVICES": visible})
        assert place is not None
        assert place["LOCAL_RANK"] == local


def test_a_jobs_script_and_a_step_of_one_task_start_ranks_themselves() -> None:
    script = {name: value for name, value in STEP.items() if "STEP" not in name} | {"SLURM_NTASKS": "8"}
    assert place_of(script) is None
    assert place_of(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_torchs_own_variables_come_first_and_half_of_them_is_refused() -> None:
    torch = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert place_of(STEP | torch) == torch
    with pytest.raises(RequestError, match="RANK and WORLD_SIZE are set and LOCAL_RANK, MASTER_PORT not"):
        place_of({name: torch[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")})


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm.slurm(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


@pytest.mark.slow
@pytest.mark.long  # tests/infra/test_slurm.py has ranks under srun
@pytest.mark.skipif(slurm.why_not() is not None, reason=slurm.why_not() or "")
def test_srun_trains_both_arms_and_tells_one_line(
    one_node: dict[str, str], captured_recipe: dict[str, Any], tmp_path: Path
) -> None:
    del captured_recipe["trainer"]["processes"]
    captured_recipe["trainer"] |= {"timeout_minutes": 1.0}
    recipe = write_recipe(tmp_path, captured_recipe | {"baseline": {}})
    work, one = Path(captured_recipe["workdir"]), tmp_path / "one"
    shutil.copytree(work, one)
    assert dkd("train", recipe, "trainer.processes=2", f"workdir={one}").returncode == 0

    def srun(*overrides: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "DKD_QUIET"}
        return subprocess.run(
            ["srun", "-n", "2", sys.executable, "-m", "distributed_kd.cli", "train", recipe, *overrides],
            env=environment | one_node | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    refused = srun("trainer.global_batch=9", "trainer.micro_batch=3")
    assert refused.returncode == 2, refused.stderr
    lines = [line for line in refused.stderr.splitlines() if "dkd: " in line]
    assert len(lines) == 1 and "is not a multiple of processes x micro_batch (2 x 3)" in lines[0], refused.stderr
    assert "Traceback" not in refused.stderr

    done = srun()
    assert done.returncode == 0, done.stderr
    for arm in ("student", "baseline"):
        assert done.stderr.count(f"{arm}: 6 of 6") == 1, done.stderr
        assert (work / arm / "export" / "model.safetensors").read_bytes() == (
            one / arm / "export" / "model.safetensors"
        ).read_bytes()
    assert done.stdout.count("sequences_seen") == 2, "one table, of both arms"
    again = srun()
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("done already") == 2
