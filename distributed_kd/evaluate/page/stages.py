"""Where the time and the memory went."""

from __future__ import annotations

from typing import Any

from distributed_kd.evaluate.words import binary, duration, is_number


def stage_rows(stages: dict[str, Any]) -> dict[str, Any]:
    timed = {name: run for name, run in stages.items() if isinstance(run, dict) and is_number(run.get("seconds"))}
    total = sum(run["seconds"] for run in timed.values())
    rows = [
        {
            "name": name,
            "seconds": f"{run['seconds']:,.1f}",
            "share": run["seconds"] / total if total else 0.0,
            "memory": binary(run.get("peak_memory_bytes")),
        }
        for name, run in timed.items()
    ]
    return {"rows": rows, "total": f"{total:,.1f}", "duration": duration(total)}
