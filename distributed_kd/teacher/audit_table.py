"""What `dkd audit` found, as tables for a terminal of 80 columns."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

_COLUMNS = (
    ("kl", "KL", "{:.2e}"),
    ("truncation", "truncation", "{:.2e}"),
    ("quantisation", "quantisation", "{:.2e}"),
    ("squared_error", "squared error", "{:.2e}"),
    ("squared_error_expected", "by chance", "{:.2e}"),
    ("kept_mass", "kept mass", "{:.4f}"),
)


def audit_table(facts: dict[str, Any]) -> Group:
    """The cache as it is, a row a temperature, then other choices of how much to keep."""
    scope = f"{facts['positions']:,} positions of {facts['sequences']:,} sequences, {facts['method']}"
    own = Table(title=f"the cache beside its teacher, in nats a position: {scope}")
    own.add_column("T", justify="right")
    there = [column for column in _COLUMNS if column[0] in next(iter(facts["temperatures"].values()))]
    for _, title, _ in there:
        own.add_column(title, justify="right")
    own.add_column("kept mass by percentile")
    for temperature, found in facts["temperatures"].items():
        spread = ", ".join(f"{name} {value:.3f}" for name, value in found["kept_mass_percentiles"].items())
        own.add_row(temperature, *[form.format(found[key]) for key, _, form in there], spread)

    key = next((key for key in ("k", "p", "draws") if key in facts["alternatives"][0]), None)
    if key is None:
        return Group(own)
    other = Table(title=f"other {key}: what they would take and cost, before rounding")
    other.add_column(key, justify="right")
    other.add_column("bytes/position", justify="right")
    shown = [column for column in there if column[0] in ("truncation", "squared_error_expected", "kept_mass")]
    for temperature in facts["temperatures"]:
        for _, title, _ in shown:
            other.add_column(f"{title}, T = {temperature}", justify="right")
    for one in facts["alternatives"]:
        cells = [form.format(found[name]) for found in one["temperatures"].values() for name, _, form in shown]
        other.add_row(
            f"{one[key]:g}", f"{one['bytes_per_position']:.1f}", *cells, style="bold" if one["present"] else ""
        )
    return Group(own, other)
