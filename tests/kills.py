"""Killing a training again and again: SIGKILL to all ranks at a drawn step, then the same training once more."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

from tests.ranks import Ranks

RANKS, STEPS = 2, 24
TRAINER = {"processes": RANKS, "micro_batch": 2, "steps": STEPS, "checkpoint_every": 3, "learning_rate": 1e-2}
_NOT_ARTIFACTS = shutil.ignore_patterns("student")


def killed_rounds(
    prepared: dict[str, Any], stage: int, rounds: int, seed: int, folder: Path, **trainer: Any
) -> list[dict[str, Any]]:
    """Trains once undisturbed, then so many times with a kill; each round's weights must be those of the first.

    prepared: a recipe whose sequences and cache are there. One mapping a round: the drawn step, the step that ranks
    were killed in, and the one that they went on from. Raises `AssertionError`.
    """
    recipe = prepared | {"baseline": "off"}
    recipe["trainer"] = recipe["trainer"] | TRAINER | {"deepspeed": {"zero_optimization": {"stage": stage}}} | trainer
    drawn = random.Random(f"{seed}/{stage}")
    folder.mkdir(parents=True)

    def run(name: str, workdir: str) -> Ranks:
        if not (folder / workdir).exists():
            shutil.copytree(prepared["workdir"], folder / workdir, ignore=_NOT_ARTIFACTS)
        return Ranks(recipe | {"workdir": str(folder / workdir)}, folder / name, RANKS)

    run("undisturbed", "whole").wait()
    whole = _weights(folder / "whole")
    told = []
    for number in range(rounds):
        step = drawn.randrange(1, STEPS)
        ranks = run(f"killed-{number}", f"work-{number}")
        while ranks.steps() < step and ranks.is_running():
            time.sleep(0.002)
        ranks.kill()
        killed = ranks.steps()
        work = folder / f"work-{number}"
        newest = max((int(file.stem[5:]) for file in (work / "student" / "checkpoints").glob("step-*.json")), default=0)
        assert not (work / "student" / "manifest.json").exists(), f"it was over before it was killed\n{ranks.said()}"
        run(f"resumed-{number}", f"work-{number}").wait()
        told.append({"stage": stage, "round": number, "drawn": step, "killed_after": killed, "resumed_from": newest})
        assert _weights(work) == whole, f"other weights: seed {seed}, {told[-1]}"
    return told


def _weights(work: Path) -> bytes:
    return (work / "student" / "export" / "model.safetensors").read_bytes()
