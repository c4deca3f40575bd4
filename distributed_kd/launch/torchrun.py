"""Ranks on this host through torchrun."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from distributed_kd import console
from distributed_kd.launch.processors import set_processors
from distributed_kd.launch.ranks import Notes
from distributed_kd.launch.started import run_launcher
from distributed_kd.recipe import Recipe


def launch(module: str, recipe: Recipe, arm: str, processes: int, log: Path) -> None:
    """Runs `python -m MODULE NOTES` as `processes` ranks, their output in `log`, until all end.

    Raises what a rank refused, or `WorkError` with the line of the log that tells most.
    """
    environment = dict(os.environ)
    set_processors(environment, processes)
    with tempfile.TemporaryDirectory(prefix="dkd-ranks-") as folder:
        notes = Notes(folder)
        notes.begin(recipe, arm)
        console.say(f"train: starting {processes} rank{'s' * (processes > 1)} for the {arm}; their output is in {log}")
        run_launcher(command(processes, module, folder), environment, notes, arm, log)


def command(processes: int, module: str, *arguments: str) -> list[str]:
    """`python -m MODULE ARGUMENTS` as so many ranks on this host.

    torchrun's agent chooses the port at which they meet by taking it: one that is chosen before its start could be
    another's by then, as any connection of this host may get it.
    """
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1",
        "-m", module, *arguments,
    ]  # fmt: skip
