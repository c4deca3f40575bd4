"""What the cache holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed_kd.evaluate.page import plots
from distributed_kd.evaluate.words import ABSENT, beginning, binary, listed, percent, plain


def cache_facts(cache: dict[str, Any]) -> list[tuple[str, str]]:
    """The cache's own facts by name; byte parts have their own table."""
    known: dict[str, tuple[str, Callable[[Any], str]]] = {
        "teacher": ("teacher", str),
        "positions": ("positions", plain),
        "sequences": ("sequences", plain),
        "shards": ("shards", plain),
        "missing_shards": ("missing shards", lambda shards: listed([str(shard) for shard in shards], "and") or "none"),
        "left_out": ("sequences left out", lambda ids: listed([str(one) for one in ids], "and")),
        "method": ("method", lambda method: str(method).replace("_", "-")),
        "k": ("ids kept a position, K", plain),
        "mean_kept_mass": ("teacher mass kept, mean", percent),
        "temperatures": ("temperatures", lambda values: ", ".join(f"{value:g}" for value in values)),
        "codec": ("codec", str),
        "bytes_total": ("bytes", lambda value: f"{plain(value)} ({binary(value)})"),
        "bytes_per_position": ("bytes a position, all counted", lambda value: f"{value:,.1f}"),
        "tokenizer_sha256": ("tokenizer, SHA-256", beginning),
        "fingerprint": ("fingerprint", beginning),
    }
    rows = [(title, write(cache[key])) for key, (title, write) in known.items() if cache.get(key) is not None]
    others = [key for key in cache if key not in known and key != "bytes_by_part"]
    return rows + [(key.replace("_", " "), plain(cache[key])) for key in others if not isinstance(cache[key], dict)]


def byte_parts(cache: dict[str, Any]) -> list[dict[str, Any]]:
    parts, positions = cache.get("bytes_by_part") or {}, cache.get("positions")
    total = sum(parts.values())
    return [
        {
            "name": name.replace("_", " "),
            "bytes": f"{size:,}",
            "each": f"{size / positions:,.1f}" if positions else ABSENT,
            "share": size / total if total else 0.0,
        }
        for name, size in sorted(parts.items(), key=lambda item: -item[1])
    ]


def plain_bytes(cache: dict[str, Any]) -> str | None:
    """Bytes a position of the obvious layout, to hold the cache's own against."""
    return plain(6 * cache["k"]) if cache.get("method") == "top_k" and cache.get("k") else None


def kept_mass_plot(kept: dict[str, Any] | None) -> dict[str, Any] | None:
    """How much of the teacher's mass fewer ids would have kept; None where that is not known of more than one K."""
    if not kept or len(kept["k"]) < 2:
        return None
    said = [f"{percent(mass)} by {count}" for count, mass in zip(kept["k"], kept["mass"], strict=True)]
    x = plots.Axis("most probable ids, K", logarithmic=True, ticks=kept["k"])
    y = plots.Axis(f"teacher mass, T = {kept['temperature']:g}", percent=True)
    line = plots.Line("student", kept["k"], kept["mass"], marked=len(said) - 1)
    label = f"Teacher mass that the most probable ids hold: {listed(said, 'and')}"
    return {"plot": plots.lines("kept-mass", label, x, y, [line]), "positions": plain(kept["positions"])}
