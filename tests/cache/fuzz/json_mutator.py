"""Changes to JSON that stay JSON: most changed bytes are refused by the parser, and what is behind it is not seen."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 1 << 22, 1 << 31, 1 << 63, -(1 << 63), 10**40, 0.0, 0.5, -1e308, 1e308, 5e-324, float("nan"),
    float("inf"), "", "0" * 64, "x" * 300, "\ud800", "1", "plain-1", "compact-1", "top_k", "none", [], [1.0], [[]], {},
    {"sha256": "0" * 64, "bytes": 0}, {"teacher": {}},
)  # fmt: skip


def mutate_json(data: bytes, seed: int) -> bytes | None:
    """One to three values replaced, copied, renamed, taken away or put in; None for what is no object."""
    drawn = random.Random(seed)
    try:
        fields = json.loads(data)
        if not isinstance(fields, dict):
            return None
        for _ in range(drawn.randrange(1, 4)):
            _mutate(fields, drawn)
        return json.dumps(fields).encode()
    except (ValueError, RecursionError):
        return None


def _mutate(fields: dict[str, Any], drawn: random.Random) -> None:
    holders = _holders(fields)
    holder = drawn.choice(holders)
    if not holder:
        return
    key = drawn.choice(sorted(holder)) if isinstance(holder, dict) else drawn.randrange(len(holder))
    kind = drawn.randrange(6)
    if kind < 2:
        holder[key] = copy.deepcopy(drawn.choice(_VALUES))
    elif kind == 2:
        other = drawn.choice([one for one in holders if one] or [holder])
        value = drawn.choice(list(other.values()) if isinstance(other, dict) else other)
        holder[key] = copy.deepcopy(value)
    elif kind == 3 and isinstance(holder[key], int | float):
        holder[key] += drawn.choice((-1, 1, 0.5))
    elif kind == 4:
        del holder[key]
    elif isinstance(holder, dict):
        holder[drawn.choice(("more", *sorted(holder)))] = holder[key]
    else:
        holder.append(copy.deepcopy(holder[key]))


def _holders(value: Any) -> list[Any]:
    """The value and all in it that hold other values."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [value] if isinstance(value, dict | list) else []
    for one in inside:
        found += _holders(one)
    return found
