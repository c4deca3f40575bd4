"""What `dkd audit` found: what other choices of how much to keep would take and cost, as plots and a table."""

from __future__ import annotations

from typing import Any

from distributed_kd.evaluate.page import plots
from distributed_kd.evaluate.words import is_number, listed, percent

_ROLES = ("student", "other", "baseline", "teacher")  # of temperatures, in turn
_CHOICES = {"k": "ids kept a position, K", "p": "mass that is kept at least, p", "draws": "ids drawn a position"}
_COSTS = {
    "truncation": ("KL", "KL of what is left out, nats"),
    "squared_error_expected": ("squared error", "squared error by chance"),
}


def audit_plots(audit: dict[str, Any]) -> dict[str, Any] | None:
    """None where there is no audit, or nothing that could have been chosen otherwise."""
    others = audit.get("alternatives") or [{}]
    choice = next((key for key in _CHOICES if key in others[0]), None)
    if choice is None or len(others) < 2:
        return None
    temperatures = list(others[0]["temperatures"])
    cost = next(key for key in _COSTS if key in others[0]["temperatures"][temperatures[0]])
    short, long = _COSTS[cost]
    roles = {t: _ROLES[place % len(_ROLES)] for place, t in enumerate(temperatures)}
    marked = next((place for place, one in enumerate(others) if one["present"]), None)

    def column(key: str, temperature: str) -> list[float]:
        return [float(one["temperatures"][temperature][key]) for one in others]

    values, sizes = [float(one[choice]) for one in others], [float(one["bytes_per_position"]) for one in others]
    along = plots.Axis(_CHOICES[choice], logarithmic=choice != "p", ticks=values)

    def plot(name: str, x: plots.Axis, y: plots.Axis, key: str, at: list[float]) -> Any:
        said = [f"at T = {t} from {column(key, t)[0]:.3g} to {column(key, t)[-1]:.3g}" for t in temperatures]
        label = f"{y.label} over {x.label}, {x.label} from {at[0]:g} to {at[-1]:g}: {listed(said, 'and')}"
        return plots.lines(name, label, x, y, [plots.Line(roles[t], at, column(key, t), marked) for t in temperatures])

    y = plots.Axis(long, logarithmic=True)
    shown = [
        plot("audit-cost", along, y, cost, values),
        plot("audit-mass", along, plots.Axis("teacher mass kept", percent=True), "kept_mass", values),
        plot("audit-bytes", plots.Axis("bytes a position"), y, cost, sizes),
    ]
    rows = [
        {
            "choice": f"{value:g}",
            "bytes": f"{size:,.1f}",
            "present": one["present"],
            "costs": [f"{one['temperatures'][t][cost]:.3g}" for t in temperatures],
            "masses": [percent(one["temperatures"][t]["kept_mass"]) for t in temperatures],
        }
        for value, size, one in zip(values, sizes, others, strict=True)
    ]
    return {
        "key": [(f"T = {t}", role) for t, role in roles.items()],
        "plots": shown,
        "rows": rows,
        "temperatures": temperatures,
        "choice": {"k": "K"}.get(choice, choice),
        "cost": short,
        "sentence": _as_it_is(audit),
        "scope": f"{audit['positions']:,} positions of {audit['sequences']:,} sequences",
    }


def _as_it_is(audit: dict[str, Any]) -> str:
    """What the cache itself costs, with its rounding."""
    said = [
        f"{found['kl']:.3g} nats a position at T = {t} ({found['quantisation']:.3g} of it by rounding)"
        for t, found in audit["temperatures"].items()
        if is_number(found.get("kl")) and is_number(found.get("quantisation"))
    ]
    return f"As it is, the cache is {listed(said, 'and')} from the teacher." if said else ""
