"""Which launcher a recipe asks for, and `dkd train` as a rank of torchrun on one host."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.errors import RequestError, Stopped
from distributed_kd.launch import torchrun
from distributed_kd.launch.hostfile import slots
from distributed_kd.launch.ranks import Notes
from distributed_kd.launch.started import run_launcher
from distributed_kd.recipe import parse
from distributed_kd.student.artifact import made_from_of
from tests.buckets import free_port
from tests.commands import ROOT, dkd, said, write_recipe
from tests.disturbed import until


@pytest.mark.parametrize(
    ("keys", "launcher"),
    [
        ({}, "local"), ({"hostfile": "hosts"}, "deepspeed"), ({"workers": 2}, "ray"),
        ({"launcher": "ray", "workers": 2}, "ray"), ({"launcher": "local"}, "local"),
    ],
)  # fmt: skip
def test_the_launcher_follows_from_its_key_and_changes_nothing_that_is_learnt(
    toy_recipe: dict[str, Any], keys: dict[str, Any], launcher: str
) -> None:
    plain = parse(toy_recipe)
    toy_recipe["trainer"] |= keys | {"max_failures": 0, "timeout_minutes": 1.0}
    recipe = parse(toy_recipe)
    assert recipe.trainer.started_by == launcher
    assert made_from_of(recipe, "cache", None) == made_from_of(plain, "cache", None)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"launcher": "deepspeed"}, "launcher deepspeed needs `hostfile`"),
        ({"launcher": "ray"}, "launcher ray needs `workers`"),
        ({"launcher": "local", "workers": 2}, "`workers` goes with launcher ray, not with local"),
        ({"hostfile": "hosts", "workers": 2}, "`workers` goes with launcher ray, not with deepspeed"),
    ],
)
def test_keys_of_another_launcher_are_refused(toy_recipe: dict[str, Any], keys: dict[str, Any], line: str) -> None:
    toy_recipe["trainer"] |= keys
    with pytest.raises(RequestError, match=line):
        parse(toy_recipe)


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# two of a kind\na slots=8\n\nb   slots=4  # the small one\n")
    assert slots(str(file)) == {"a": 8, "b": 4}
    for text, line in (
        ("a slots=0", "'a slots=0' is not `HOST slots=RANKS`"), ("a", "'a' is not"), ("", "names no host"),
        ("a slots=1\na slots=2", "'a slots=2' is not"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(RequestError, match=line):
            slots(str(file))
    with pytest.raises(RequestError, match="cannot be read"):
        slots(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("at_the_signal", "line"),
    [("SIG_DFL", "stopped before the first step of this run"), ("ends", "stopped after the last step of the student")],
)
def test_a_command_that_is_stopped_while_no_rank_can_hear_it_ends_well(
    toy_recipe: dict[str, Any], tmp_path: Path, at_the_signal: str, line: str
) -> None:
    """Before its ranks have come together, where they die of it, or when they are done."""
    code = (
        "import signal, sys, time; from pathlib import Path; from signal import SIG_DFL\n"
        f"ends = lambda *_: sys.exit(0)\nsignal.signal(signal.SIGTERM, {at_the_signal})\n"
        "Path(sys.argv[1]).touch()\ntime.sleep(100)"
    )
    notes = Notes(str(tmp_path / "notes"))
    notes.begin(parse(toy_recipe), "student")
    started = tmp_path / "started"

    def tell() -> None:
        until(started.exists, "the ranks")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell).start()
    command = [sys.executable, "-c", code, str(started)]
    with pytest.raises(Stopped, match=f"{line}.*; the same command goes on from there"):
        run_launcher(command, dict(os.environ), notes, "student", tmp_path / "train.log")


def test_a_rank_does_not_run_all_stages(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = dkd("run", write_recipe(tmp_path, toy_recipe), **place)
    assert done.returncode == 2
    assert "start `dkd train` for that stage" in said(done)


MEETING = """
import os, pathlib
port = int(os.environ["MASTER_PORT"])
listening = {
    row.split()[9] for name in ("tcp", "tcp6") for row in pathlib.Path("/proc/net", name).read_text().splitlines()[1:]
    if row.split()[3] == "0A" and int(row.split()[1].rsplit(":")[1], 16) == port
}
own = pathlib.Path(f"/proc/{os.getppid()}/fd")
held = {os.path.basename(os.path.realpath(file)) for file in own.iterdir()}
assert {f"socket:[{inode}]" for inode in listening} & held
pathlib.Path(f"met-{os.environ['RANK']}").touch()
"""


def test_ranks_of_one_host_meet_at_a_port_that_their_launcher_holds_already(tmp_path: Path) -> None:
    (tmp_path / "meeting.py").write_text(MEETING)
    own = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = torchrun.command(2, "meeting")
    assert not [part for part in command if re.search(r"\d{4,}$", part)], "a port that is chosen before it is held"
    subprocess.run(command, env=own, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert {file.name for file in tmp_path.glob("met-*")} == {"met-0", "met-1"}


@pytest.mark.slow
@pytest.mark.long
def test_torchrun_on_one_host_trains_what_dkd_train_does(captured_recipe: dict[str, Any], tmp_path: Path) -> None:
    """Both arms in one process a rank; what is missing is one line, what is done is skipped by all."""
    recipe = write_recipe(tmp_path, captured_recipe | {"baseline": {}})
    work, one = Path(captured_recipe["workdir"]), tmp_path / "one"
    zero = "trainer.deepspeed.zero_optimization.stage=3"
    shutil.copytree(work, one)
    assert dkd("train", recipe, zero, "trainer.processes=2", f"workdir={one}").returncode == 0

    def as_rank(*overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
                "--master-port", str(free_port()), "-m", "distributed_kd.cli", "train", recipe, zero, "--json",
                *overrides,
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    done = as_rank(f"workdir={tmp_path / 'none'}")
    assert done.returncode == 1, "torchrun's own, whatever a rank's is"
    lines = [line for line in done.stderr.splitlines() if line.startswith("dkd: ")]
    assert len(lines) == 1 and "none/cache holds no cache; run `dkd cache` first" in lines[0], done.stderr
    done = as_rank()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {"student", "baseline"}
    for arm in ("student", "baseline"):
        export = f"{arm}/export/model.safetensors"
        assert (work / export).read_bytes() == (one / export).read_bytes()
    manifests = [(work / arm / "manifest.json").stat().st_mtime_ns for arm in ("student", "baseline")]
    assert as_rank().returncode == 0
    assert manifests == [(work / arm / "manifest.json").stat().st_mtime_ns for arm in ("student", "baseline")]
