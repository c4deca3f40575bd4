"""Where the time, the devices and the memory went, and what the devices cost."""

from __future__ import annotations

from typing import Any

from distributed_kd.evaluate.words import ABSENT, binary, duration, is_number


def stage_rows(stages: dict[str, Any], price_hour: float | None) -> dict[str, Any]:
    """price_hour: of one device; without it nothing has a cost."""
    timed = {name: run for name, run in stages.items() if isinstance(run, dict) and is_number(run.get("seconds"))}
    total = sum(run["seconds"] for run in timed.values())
    hours = {name: run.get("device_seconds", 0.0) / 3600 for name, run in timed.items()}
    rows = [
        {
            "name": name,
            "seconds": f"{run['seconds']:,.1f}",
            "share": run["seconds"] / total if total else 0.0,
            "hours": _hours(hours[name]),
            "cost": _cost(hours[name], price_hour),
            "memory": binary(run.get("peak_memory_bytes")),
        }
        for name, run in timed.items()
    ]
    return {
        "rows": rows,
        "total": f"{total:,.1f}",
        "duration": duration(total),
        "hours": _hours(sum(hours.values())),
        "cost": _cost(sum(hours.values()), price_hour),
    }


def _hours(hours: float) -> str:
    """Nothing for a stage that holds no device."""
    return f"{hours:,.3g}" if 0.0 < hours < 100.0 else f"{hours:,.0f}" if hours else ABSENT


def _cost(hours: float, price_hour: float | None) -> str | None:
    if price_hour is None:
        return None
    return f"{hours * price_hour:,.2f}" if hours else ABSENT
