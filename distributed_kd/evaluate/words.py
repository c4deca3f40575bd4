"""Numbers and lists in words, as the report's page writes them."""

from __future__ import annotations

import math
from typing import Any

ABSENT = "\u2013"
MINUS = "\u2212"


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def ratio(value: Any, other: Any) -> float | None:
    return value / other if is_number(value) and is_number(other) and other else None


def listed(words: list[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def plain(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def percent(value: Any) -> str:
    return f"{100 * value:.1f}%" if is_number(value) else "an unknown share"


def beginning(digest: Any) -> str:
    """Of a digest that stands in full among the fingerprints."""
    return f"{str(digest)[:10]}\u2026"


def count(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.1f}{letter}"
    return f"{value:,.0f}"


def binary(value: Any) -> str:
    if not is_number(value) or not value:
        return ABSENT
    power = min(int(math.log(value, 1024)), 4)
    return f"{value / 1024**power:,.{2 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"
