"""Bytes a position against the KL that coding adds: what a finer or coarser compact-1 costs, and where others lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from logit_cache.capture import Captured
from logit_cache.layouts import added_kl, vocabulary_of

from distributed_kd.cache import shard
from distributed_kd.cache.codecs import compact
from distributed_kd.cache.codecs.quantiser import KL_BUDGET

WIDTHS = (16, 64, 128)
BUDGETS = (3e-5, 1e-4, KL_BUDGET, 1e-3, 3e-3)
MUST_BYTES, MUST_KL = 88, 3e-4  # what compact-1 has to stay below at K = 64
TICKS = (20, 50, 100, 200, 400)
COLOURS = dict(zip(WIDTHS, ("#1b7f5c", "#1f5fa8", "#a8471f"), strict=True))


def sweep(sample: Captured, measured: Captured) -> list[dict[str, float]]:
    """Bytes and KL at T = 1 of compact-1 by kept ids and by the KL that its code tables may add."""
    points = []
    vocabulary = vocabulary_of(sample, measured)
    for k in WIDTHS:
        targets = measured.top_k(k, (1.0,))
        rows = measured.rows(targets)
        lengths = np.array([len(row.targets) for row in rows])
        for budget in BUDGETS:
            tables = compact.build_tables(sample.top_k(k, (1.0,)), sample.tokens, vocabulary, kl_budget=budget)
            data, _ = shard.encode(rows, compact.NAME, "0" * 64, 0, tables)
            columns = compact.encode(targets, lengths, measured.tokens, tables).columns
            decoded = compact.decode(columns, lengths, measured.tokens, (1.0,), tables)
            kl = added_kl(targets, decoded, 1.0)
            points.append({"k": k, "kl_budget": budget, "bytes_per_position": len(data) / len(targets), "kl": kl})
    return points


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the plot of a report with a sweep, as the file's ending says."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 5.2), layout="constrained")
    axes.set(xscale="log", yscale="log", xlim=(14, 560), ylim=(4e-9, 2e-2))
    axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
    axes.minorticks_off()
    axes.set_xlabel("bytes a position, whole file with input ids")
    axes.set_ylabel("KL that coding adds at T = 1, nats a position")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)

    for k, colour in COLOURS.items():
        points = [point for point in report["rate_distortion"] if point["k"] == k]
        size, kl = [p["bytes_per_position"] for p in points], [p["kl"] for p in points]
        axes.plot(size, kl, "o-", color=colour, markersize=4)
        at = [p["kl_budget"] for p in points].index(KL_BUDGET)
        axes.plot(size[at], kl[at], "o", color=colour, markersize=8)
        axes.annotate(f"compact-1\nK = {k}", (size[-1], kl[-1]), (0, 6), textcoords="offset points", color=colour,
                      ha="center", va="bottom")  # fmt: skip

    def point(targets: str, layout: str, label: str, marker: str, colour: str, above: bool) -> None:
        row = next(r for r in report["rows"] if (r["targets"], r["layout"]) == (targets, layout))
        at = row["bytes_per_position"], row["kl"]["1"]
        axes.plot(*at, marker, color=colour, markersize=6)
        axes.annotate(label, at, (0, 8 if above else -9), textcoords="offset points", color=colour, ha="center",
                      va="bottom" if above else "top")  # fmt: skip

    for k, colour in COLOURS.items():
        point(f"top-{k}", "plain-1", f"plain-1\nK = {k}", "s", colour, above=True)
    for k in (16, 64):
        point(f"top-{k}", "Arrow", f"Arrow, float16\nK = {k}", "^", COLOURS[k], above=False)
    point("50 draws", "24-bit entries", "24-bit entries\n50 draws", "D", "0.35", above=False)

    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    axes.plot([left, MUST_BYTES, MUST_BYTES], [MUST_KL, MUST_KL, bottom], ":", color="0.45", linewidth=1)
    axes.annotate("K = 64 must lie in here:\n88 bytes, 3e-4 nats", (MUST_BYTES, 1e-6), (6, 0),
                  textcoords="offset points", color="0.35", fontsize=9, va="center")  # fmt: skip
    axes.annotate("large dots: the default budget", (0.99, 0.98), xycoords="axes fraction", ha="right", va="top",
                  color="0.35", fontsize=9)  # fmt: skip
    figure.savefig(path, dpi=110)
