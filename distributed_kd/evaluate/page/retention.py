"""Retention: accuracy as a share of the teacher's, or the ensemble's, with the interval of the student's."""

from __future__ import annotations

from typing import Any

from distributed_kd.evaluate.words import ABSENT, is_number, percent, ratio


def interval_of(report: dict[str, Any]) -> tuple[str, str] | None:
    """The edges of the student's 95% interval; None where the report has none."""
    edges = report.get("retention_interval") or []
    return (percent(edges[0]), percent(edges[1])) if len(edges) == 2 and all(map(is_number, edges)) else None


def retention_row(report: dict[str, Any]) -> list[tuple[str, tuple[str, str] | None]] | None:
    """What each model has, and for the student the interval beside it; None where the report has no retention."""
    if not is_number(report.get("retention")):
        return None
    models = report["models"]
    best = models.get("ensemble", models.get("teacher", {})).get("accuracy")
    row: list[tuple[str, tuple[str, str] | None]] = []
    for name, own in models.items():
        if name == "student":
            row.append((percent(report["retention"]), interval_of(report)))
        else:
            share = ratio(own.get("accuracy"), best)
            row.append((ABSENT if share is None else percent(share), None))
    return row
