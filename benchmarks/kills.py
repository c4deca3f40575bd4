"""SIGKILL of all ranks at random steps under ZeRO 0 to 3: whether the weights are those of an undisturbed training.

    python benchmarks/kills.py [--rounds 5] [--seed N] [--json]

Each round trains a toy student from the start with two gloo ranks, a checkpoint every third step, kills both at a step
drawn from the seed, runs the same once more and compares the exported safetensors byte by byte with those of a run
that was left alone. It ends with an error at the first that differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("DKD_QUIET", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from distributed_kd import console
from tests import toys
from tests.commands import dkd, write_recipe
from tests.kills import RANKS, STEPS, TRAINER, killed_rounds


def prepared(folder: Path) -> dict[str, Any]:
    """A toy recipe whose sequences and cache are there."""
    (folder / "corpus").mkdir()
    teacher = toys.save_model(folder / "teacher", layers=4, seed=1, vocab_size=72)
    student = toys.save_model(folder / "student", layers=2, seed=2)
    recipe = toys.recipe(teacher, student, toys.write_corpus(folder / "corpus"), folder / "work")
    for stage in ("prepare", "cache"):
        done = dkd(stage, write_recipe(folder, recipe))
        if done.returncode:
            raise SystemExit(done.stderr)
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--json", action="store_true")
    said = parser.parse_args()
    console.claim_stdout()  # DeepSpeed prints there
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = prepared(Path(folder))
        for stage in range(4):
            rows += killed_rounds(recipe, stage, said.rounds, said.seed, Path(folder) / f"stage-{stage}")
    if said.json:
        import deepspeed
        import torch

        versions = {"torch": torch.__version__, "deepspeed": deepspeed.__version__, "python": platform.python_version()}
        machine = {"processors": os.cpu_count(), "machine": platform.machine(), "ranks": RANKS}
        setting = {"seed": said.seed, "steps": STEPS, "checkpoint_every": TRAINER["checkpoint_every"]}
        print(json.dumps({"machine": machine, "versions": versions, **setting, "rows": rows}), file=console.results())
        return
    table = [f"seed {said.seed}, {STEPS} steps; all weights are those of the undisturbed run"]
    table += ["stage  round  killed after  resumed from"]
    for row in rows:
        table += [f"{row['stage']:5d}  {row['round']:5d}  {row['killed_after']:12d}  {row['resumed_from']:12d}"]
    print(*table, sep="\n", file=console.results())


if __name__ == "__main__":
    main()
