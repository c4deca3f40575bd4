"""What `dkd plan` forecasts, as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Group
from rich.table import Table

_COSTS = (
    ("truncation", "KL", "{:.2g}"),
    ("kept_mass", "kept", "{:.3f}"),
    ("squared_error_expected", "chance", "{:.2g}"),
)


def plan_table(facts: dict[str, Any]) -> Group:
    """The recipe's own capture with its intervals, then other choices of how much to keep."""
    return Group(_own(facts), _targets(facts))


def _own(facts: dict[str, Any]) -> Table:
    found, probe, total = facts["forecast"], facts["probe"], facts["positions"]
    low, high = found["bytes_total_interval"]
    table = Table(
        title=f"{facts['name']}: {total:,} positions in {facts['shards']:,} shards, {_label(facts['targets'][0])}",
        caption=f"from {probe['positions']:,} positions of {probe['sequences']:,} sequences on {probe['replicas']} "
        f"replicas, in {_time(probe['seconds'])}",
    )
    for title in ("", "forecast", "95% interval"):
        table.add_column(title, justify="right" if title else "left")
    table.add_row("bytes a position", f"{found['bytes_per_position']:.1f}", _range([low / total, high / total], _three))
    table.add_row("shards and code tables", _size(found["bytes_total"]), _range([low, high], _size))
    table.add_row(f"all that is stored, {found['puts']:,} files written", _size(found["bytes_stored"]), "")
    table.add_row("time", _time(found["seconds"]), _range(found["seconds_interval"], _time))
    for name, seconds in found["seconds_by_step"].items():
        table.add_row(f"  {name}", _time(seconds), "")
    table.add_row(f"positions a second, {found['replicas']:,} replicas", f"{found['positions_per_second']:,.0f}", "")
    hours = f"accelerator hours, {found['devices']:,} devices"
    table.add_row(hours, _three(found["accelerator_hours"]), _range(found["accelerator_hours_interval"], _three))
    for key, title in (("price_hours", "price of the hours"), ("price_month", "price of a month's storage")):
        if key in found:
            table.add_row(title, _money(found[key]), _range(found[f"{key}_interval"], _money))
    return table


def _targets(facts: dict[str, Any]) -> Table:
    """A row a choice; costs at the first temperature."""
    own = facts["targets"][0]
    temperature, has_price = next(iter(own["temperatures"])), "price_month" in own
    table = Table(
        title="other targets beside the recipe's own, before rounding",
        caption=f"at T = {temperature}: KL by truncation, in nats a position; mass kept; squared error of drawn ids by "
        "chance" + ("; price of a month" if has_price else ""),
    )
    table.add_column("targets", no_wrap=True)
    titles = ["bytes", "95%", "all", *(title for _, title, _ in _COSTS), *(["month"] if has_price else [])]
    for title in titles:
        table.add_column(title, justify="right")
    for one in facts["targets"]:
        edges = [edge / facts["positions"] for edge in one["bytes_total_interval"]]
        costs = one["temperatures"][temperature]
        cells = [
            _label(one), f"{one['bytes_per_position']:.1f}", _range(edges, _three), _size(one["bytes_total"]),
            *(form.format(costs[name]) if name in costs else "" for name, _, form in _COSTS),
            *([_money(one["price_month"])] if has_price else []),
        ]  # fmt: skip
        table.add_row(*cells, style="bold" if one["present"] else "")
    return table


def _label(one: dict[str, Any]) -> str:
    value = {"top_k": "k", "top_p": "p", "sample": "draws"}.get(one["method"])
    return one["method"] if value is None else f"{value} = {one[value]:g}"


def _size(amount: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.3g} {unit}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.4g} h"


def _three(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _money(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 0.01 else "<0.01"


def _range(edges: list[float], form: Callable[[float], str]) -> str:
    """An interval, the unit said once where both have it."""
    low, high = (form(edge) for edge in edges)
    number, _, unit = low.partition(" ")
    return f"{number if unit and high.endswith(f' {unit}') else low}-{high}"
