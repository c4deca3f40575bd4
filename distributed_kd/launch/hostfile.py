"""Ranks on the hosts of a hostfile, through DeepSpeed's own launcher: pdsh over ssh without a password.

A host's ranks get its working directory and PYTHONPATH from here, and what the network, the accelerator and the hub are
told by; no credentials, since they would stand in a command line.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from distributed_kd import console
from distributed_kd.errors import RequestError
from distributed_kd.launch.processors import set_processors
from distributed_kd.launch.ranks import Notes
from distributed_kd.launch.started import run_launcher
from distributed_kd.recipe import Recipe

_HANDED_ON = ("DS_ACCELERATOR", "OMP_NUM_THREADS", "GLOO_", "NCCL_", "HF_HUB_OFFLINE", "HF_HOME", "DKD_", "TORCH_NCCL_")


def slots(hostfile: str) -> dict[str, int]:
    """host -> ranks. Raises `RequestError` for a file that DeepSpeed would not read."""
    try:
        lines = [line.split("#")[0].strip() for line in Path(hostfile).read_text().splitlines()]
    except OSError as error:
        raise RequestError(f"trainer.hostfile {hostfile} cannot be read: {error.strerror}") from error
    found: dict[str, int] = {}
    for line in filter(None, lines):
        match = re.fullmatch(r"(\S+)\s+slots=([1-9]\d*)", line)
        if match is None or match[1] in found:
            raise RequestError(f"trainer.hostfile {hostfile}: {line!r} is not `HOST slots=RANKS`, a line for each host")
        found[match[1]] = int(match[2])
    if not found:
        raise RequestError(f"trainer.hostfile {hostfile} names no host")
    return found


def launch(module: str, recipe: Recipe, arm: str, hostfile: str, notes: Notes, log: Path) -> None:
    """Runs `python -m MODULE NOTES` as a rank on each slot of the hosts, their output in `log`, until all end.

    Raises what a rank refused, or `WorkError` with the line of the log that tells most.
    """
    if shutil.which("pdsh") is None:
        raise RequestError(
            "trainer.launcher deepspeed needs `pdsh` on this host; install it, or start the ranks by hand"
        )
    hosts = slots(hostfile)
    environment = dict(os.environ)
    set_processors(environment, max(hosts.values()))
    notes.begin(recipe, arm)
    with tempfile.TemporaryDirectory(prefix="dkd-hosts-") as folder:
        handed_on = Path(folder) / "environment"
        handed_on.write_text(
            "".join(f"{key}={value}\n" for key, value in sorted(environment.items()) if key.startswith(_HANDED_ON))
        )
        environment["DS_ENV_FILE"] = str(handed_on)
        command = [
            sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", hostfile, "--force_multi",
            "--master_port", str(_free_port()), "--no_local_rank", "--module", module, notes.store.uri,
        ]  # fmt: skip
        console.say(
            f"train: starting {sum(hosts.values())} ranks on {len(hosts)} hosts for the {arm}; their output is in {log}"
        )
        run_launcher(command, environment, notes, arm, log)


def _free_port() -> int:
    """One that nobody has here, on the first host. DeepSpeed's launcher must be told one; it does not choose."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
