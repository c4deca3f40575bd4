"""Training over two hosts: the weights of one, to the bit, also where the link is cut for a while or for good."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import dkd, write_recipe
from tests.disturbed import until
from tests.hosts import sshd
from tests.hosts.two_hosts import BIN, HEAD, Host, TwoHosts, two_hosts, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]

EXPORT = "student/export/model.safetensors"
PORT = 29_400
MINUTES = 1.5  # trainer.timeout_minutes
STEPS = 150
SHORT_CUT_SECONDS = 5.0
# Nothing here takes so long; what waits for ever is told from what is slow.
DEADLINE = 180.0
NETWORK = {"GLOO_SOCKET_IFNAME": "eth", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


@pytest.fixture
def recipe(captured_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """Prepared and captured, with its workdir copied to `one` for one host and to `two` for two of them."""
    captured_recipe["trainer"] |= {
        "micro_batch": 2, "steps": STEPS, "checkpoint_every": 10, "timeout_minutes": MINUTES,
    }  # fmt: skip
    del captured_recipe["trainer"]["processes"]
    written = write_recipe(tmp_path, captured_recipe)
    for name in ("one", "two"):
        shutil.copytree(captured_recipe["workdir"], tmp_path / name)
    return written


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    with two_hosts() as made:
        yield made


def start(host: Host, rank: int, recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    """As a user does on each host; c10d's rendezvous would look for names, and there are none here."""
    return host.start(
        [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank),
            "--nproc-per-node", "1", "--master-addr", HEAD, "--master-port", str(PORT),
            "-m", "distributed_kd.cli", "train", recipe, *overrides,
        ],
        NETWORK, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def ends(started: list[subprocess.Popen[str]]) -> list[str]:
    said = [process.communicate(timeout=DEADLINE)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return said


def checkpoints_of(workdir: Path) -> list[str]:
    return sorted(path.stem for path in (workdir / "student" / "checkpoints").glob("step-*.json"))


def trained_on_one(recipe: Path, tmp_path: Path, *overrides: str) -> bytes:
    done = dkd("train", recipe, "trainer.processes=2", *overrides, f"workdir={tmp_path / 'one'}")
    assert done.returncode == 0, done.stderr
    return (tmp_path / "one" / EXPORT).read_bytes()


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.long), 3])
def test_two_hosts_train_as_one_does_also_over_a_link_that_is_cut(
    hosts: TwoHosts, recipe: Path, tmp_path: Path, stage: int
) -> None:
    """For a while, and for good; under ZeRO-3 weights are on the other host as well."""
    zero = f"trainer.deepspeed.zero_optimization.stage={stage}"
    expected = trained_on_one(recipe, tmp_path, zero)
    two = tmp_path / "two"
    shutil.copytree(two, tmp_path / "cut")

    started = [start(host, rank, recipe, zero, f"workdir={two}") for rank, host in enumerate(hosts.hosts)]
    until(lambda: checkpoints_of(two) or started[0].poll() is not None, "a checkpoint", DEADLINE)
    hosts.cut()
    time.sleep(SHORT_CUT_SECONDS)  # TCP sends again
    hosts.restore()
    said = ends(started)
    assert (two / EXPORT).read_bytes() == expected
    assert f"student: {STEPS} of {STEPS}" in said[0], said[0]
    assert "student: " not in said[1], "rank 0 alone shows progress"
    said = ends([start(host, rank, recipe, zero, f"workdir={two}") for rank, host in enumerate(hosts.hosts)])
    assert "done already" in said[0]

    cut = tmp_path / "cut"
    started = [start(host, rank, recipe, zero, f"workdir={cut}") for rank, host in enumerate(hosts.hosts)]
    until(lambda: len(checkpoints_of(cut)) == 2 or started[0].poll() is not None, "two checkpoints", DEADLINE)
    hosts.cut()
    begun = time.monotonic()
    said = [process.communicate(timeout=DEADLINE)[1] for process in started]
    seconds = time.monotonic() - begun
    print(f"ZeRO-{stage}: both hosts ended {seconds:.0f} s after the cut")
    assert seconds < 60.0 * MINUTES
    assert [process.returncode for process in started] == [1, 1], said
    for text, silent in zip(said, ("rank 1 on ", f"rank 0 at {HEAD}:{PORT} "), strict=True):
        lines = [line for line in text.splitlines() if line.startswith("dkd: ")]
        print(*lines)
        assert len(lines) == 1, text
        assert lines[0].startswith(f"dkd: {silent}"), text
        assert "the same command goes on from the last checkpoint" in lines[0]
    until(lambda: not any(host.processes() for host in hosts.hosts), "the end of every process on both hosts", 10.0)
    reached = checkpoints_of(cut)
    assert reached and not (cut / "student" / "manifest.json").exists()
    hosts.restore()
    ends([start(host, rank, recipe, zero, f"workdir={cut}") for rank, host in enumerate(hosts.hosts)])
    assert (cut / EXPORT).read_bytes() == expected


def write_hostfile(hosts: TwoHosts, folder: Path) -> Path:
    (folder / "hosts").write_text("".join(f"{host.address} slots=1\n" for host in hosts.hosts))
    return folder / "hosts"


@pytest.mark.long
@pytest.mark.skipif(sshd.why_not() is not None, reason=sshd.why_not() or "")
def test_a_hostfile_is_enough_where_ssh_needs_no_password(hosts: TwoHosts, recipe: Path, tmp_path: Path) -> None:
    expected = trained_on_one(recipe, tmp_path)
    variables = NETWORK | sshd.start_sshd(hosts, tmp_path)
    hostfile, two = write_hostfile(hosts, tmp_path), tmp_path / "two"

    def train(*overrides: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "distributed_kd.cli", "train", recipe, f"workdir={two}", *overrides]
        process = hosts.a.start(
            [*command, f"trainer.hostfile={hostfile}"], variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        said = process.communicate(timeout=DEADLINE)[1]
        return process.returncode, said

    code, said = train()
    assert code == 0, said + (two / "student" / "train.log").read_text()
    assert "starting 2 ranks on 2 hosts" in said and f"student: {STEPS} of {STEPS}" in said, said
    assert (two / EXPORT).read_bytes() == expected
    assert not (two / "student" / "launch").exists()

    # A rank's own refusal, from whatever host, is the command's.
    shutil.rmtree(two / "student")
    shard = next((two / "cache" / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 8
    shard.write_bytes(data)
    code, said = train()
    assert code == 2, said
    lines = [line for line in said.splitlines() if line.startswith("dkd: ")]
    assert len(lines) == 1 and f"{shard} is damaged" in lines[0], said


@pytest.mark.long
def test_deepspeeds_launcher_without_ssh_is_started_on_each_host(hosts: TwoHosts, recipe: Path, tmp_path: Path) -> None:
    expected = trained_on_one(recipe, tmp_path)
    two = tmp_path / "two"
    started = [
        host.start(
            [
                BIN / "deepspeed", "--hostfile", write_hostfile(hosts, tmp_path), "--no_ssh", "--node_rank", str(rank),
                "--master_addr", HEAD, "--master_port", str(PORT), "--no_local_rank",
                "--module", "distributed_kd.cli", "train", recipe, f"workdir={two}",
            ],
            NETWORK, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for rank, host in enumerate(hosts.hosts)
    ]  # fmt: skip
    said = ends(started)
    assert f"student: {STEPS} of {STEPS}" in said[0], said[0]
    assert (two / EXPORT).read_bytes() == expected
