"""How near `dkd plan` comes to the capture that it forecasts: forecast over real, bytes and seconds.

    python benchmarks/plan.py [recipes/demo.yaml] [KEY.PATH=VALUE ...] [--rounds 3] [--workdir FOLDER] [--json]

Each round plans, captures and throws the cache away; a machine whose load changes in between moves the ratio of seconds
and not that of bytes. `plan s` is the whole forecast as a command, `real s` the capture as `run.json` tells it. A
teacher that must be converted first is, before the first round. Exits 1 where a round's bytes are further than 10% from
the real ones, or its seconds than 20%.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", nargs="?", default=str(ROOT / "recipes" / "demo.yaml"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workdir", type=Path, help="a folder whose cache is deleted; a temporary one when not given")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workdir = options.workdir or Path(temporary)
        arguments = [options.recipe, *options.overrides, f"workdir={workdir}"]
        dkd("prepare", *arguments)
        report = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__},
            "rows": [measure(workdir, arguments) for _ in range(options.rounds)],
        }
    show(report, options.json)
    far = [row for row in report["rows"] if abs(row["bytes_ratio"] - 1) > 0.1 or abs(row["seconds_ratio"] - 1) > 0.2]
    sys.exit(1 if far else 0)


def show(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))
        return
    print(f"{report['machine']}; {', '.join(f'{name} {v}' for name, v in report['versions'].items())}")
    print(
        f"{'bytes':>12} {'real':>12} {'ratio':>6} {'seconds':>8} {'real s':>7} {'ratio':>6} {'plan s':>7} {'load':>5}"
    )
    for row in report["rows"]:
        print(
            f"{row['bytes_forecast']:12,.0f} {row['bytes']:12,} {row['bytes_ratio']:6.3f} "
            f"{row['seconds_forecast']:8.1f} {row['seconds']:7.1f} {row['seconds_ratio']:6.3f} "
            f"{row['plan_seconds']:7.1f} {row['load_before']:5.1f}"
        )


def measure(workdir: Path, arguments: list[str]) -> dict[str, Any]:
    load, begun = os.getloadavg()[0], time.monotonic()
    forecast = dkd("plan", *arguments)["forecast"]
    plan_seconds = time.monotonic() - begun
    shutil.rmtree(workdir / "cache", ignore_errors=True)
    real = dkd("cache", *arguments)
    seconds = json.loads((workdir / "cache" / "run.json").read_text())["seconds"]
    return {
        "bytes_forecast": forecast["bytes_total"],
        "bytes": real["bytes_total"],
        "bytes_ratio": forecast["bytes_total"] / real["bytes_total"],
        "seconds_forecast": forecast["seconds"],
        "seconds_interval": forecast["seconds_interval"],
        "seconds_by_step": forecast["seconds_by_step"],
        "seconds": seconds,
        "seconds_ratio": forecast["seconds"] / seconds,
        "plan_seconds": plan_seconds,
        "load_before": load,
    }


def dkd(command: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "distributed_kd.cli", command, *arguments, "--json"], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
