"""The report as a table for a terminal of 80 columns: a row a figure, a column a model."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from distributed_kd.evaluate.figures import FIGURES


def report_table(report: dict[str, Any]) -> Table:
    """Teacher, student, baseline, and student minus baseline with its 95% interval over documents."""
    held_out = report["held_out"]
    scope = f"{held_out['positions']:,} positions of {held_out['documents']} held-out documents"
    table = Table(title=f"{scope} ({held_out['split']})", caption="; ".join(_shares(report)))
    table.add_column("")
    for name in report["models"]:
        table.add_column(name, justify="right")
    differences = report.get("differences", {})
    if differences:
        table.add_column("student - baseline", justify="right")
    for figure in FIGURES:
        cells = [figure.unscaled(own[figure.key]) if figure.key in own else "" for own in report["models"].values()]
        if differences:
            cells.append(_interval(differences[figure.key]) if figure.key in differences else "")
        table.add_row(figure.in_terminal, *cells)
    return table


def _shares(report: dict[str, Any]) -> list[str]:
    if "teacher" not in report["models"]:
        return ["no teacher: a student of hard labels alone"]
    retention = "unknown, as the teacher has none" if report["retention"] is None else f"{report['retention']:.3f}"
    if interval := report.get("retention_interval"):  # not in a report that an older version wrote
        retention += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    shares = [f"retention, the student's accuracy over the teacher's: {retention}"]
    if report.get("transferred_share") is not None:
        low, high = report["transferred_share_interval"]
        share = f"{report['transferred_share']:.2f} [{low:.2f}, {high:.2f}]"
        shares.append(f"share of the ensemble's gain that was transferred: {share}")
    return shares


def _interval(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
