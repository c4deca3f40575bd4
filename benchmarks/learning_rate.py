"""Chooses the learning rate of student and baseline from one grid, on the development split, at one budget.

    python benchmarks/learning_rate.py recipes/demo.yaml --workdir runs/learning_rate

Each rate trains both arms from the same sequences and the same cache, and scores them on the development
documents, which the report never reads. Prints the table, or with --json one object.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_kd

GRID = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--workdir", type=Path, default=Path("runs/learning_rate"))
    parser.add_argument("--rates", type=float, nargs="+", default=list(GRID))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    shared = arguments.workdir / "shared"
    for stage in ("prepare", "cache"):
        dkd(stage, arguments.recipe, f"workdir={shared}")
    rows = [row for rate in arguments.rates for row in score(arguments.recipe, rate, arguments.workdir, shared)]
    if arguments.json:
        versions = {"distributed_kd": distributed_kd.__version__, "python": platform.python_version()}
        print(json.dumps({"machine": machine(), "versions": versions, "rows": rows}))
        return
    print(f"{'arm':9} {'rate':>7} {'cross-entropy':>14} {'KL':>7} {'agreement':>10}   (development split, {machine()})")
    for row in rows:
        print(
            f"{row['name']:9} {row['learning_rate']:7.0e} {row['cross_entropy']:14.3f} "
            f"{row['kl_from_teacher']:7.3f} {row['agreement']:10.3f}"
        )
    for arm in ("student", "baseline"):
        best = min((row for row in rows if row["name"] == arm), key=lambda row: row["cross_entropy"])
        print(f"best for {arm}: {best['learning_rate']:g}")


def score(recipe: str, rate: float, workdir: Path, shared: Path) -> list[dict[str, Any]]:
    """Trains and scores both arms at one rate, in a workdir that takes over the shared sequences and cache."""
    own = workdir / f"{rate:g}"
    for artifact in ("sequences", "cache"):
        shutil.copytree(shared / artifact, own / artifact, dirs_exist_ok=True)
    report = dkd(
        "run", recipe, f"workdir={own}", f"trainer.learning_rate={rate}", f"baseline.learning_rate={rate}",
        "evaluate.split=development",
    )  # fmt: skip
    keys = ("cross_entropy", "kl_from_teacher", "agreement")
    return [
        {"name": arm, "learning_rate": rate, **{key: report["models"][arm][key] for key in keys}}
        for arm in ("student", "baseline")
    ]


def dkd(command: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "distributed_kd.cli", command, *arguments, "--json"], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def machine() -> str:
    import os

    return f"{platform.machine()}, {os.cpu_count()} processors"


if __name__ == "__main__":
    main()
