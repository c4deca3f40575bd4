"""Student against baseline: which is better in a figure, in words, in a table and as a plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from distributed_kd.evaluate.figures import Figure, figure_of, place_of
from distributed_kd.evaluate.page import plots
from distributed_kd.evaluate.words import is_number

Outcome = Literal["better", "worse", "cannot be told apart"]
UNCLEAR: Outcome = "cannot be told apart"


@dataclass(frozen=True)
class Comparison:
    """Student against baseline in one figure."""

    figure: Figure
    outcome: Outcome | None  # None: of this figure it is not known which way is better
    student: str
    baseline: str
    difference: str
    low: str
    high: str
    zero: str  # how the interval lies to zero


def outcome(figure: Figure, found: dict[str, Any], documents: int | None = None) -> Outcome | None:
    """Better or worse only when the whole interval lies on one side of zero; touching it is not enough."""
    low, high = found["interval"]
    # One document has nothing to resample: its interval is a point and says nothing.
    told_apart = (low > 0 or high < 0) and documents != 1
    if figure.lower_is_better is None:
        return None if told_apart else UNCLEAR
    if not told_apart:
        return UNCLEAR
    return "better" if (high < 0) == figure.lower_is_better else "worse"


def comparisons_of(report: dict[str, Any], found: dict[str, Any]) -> list[Comparison]:
    """A row a figure of `found`, which are those of the report's differences that are to be shown."""
    models, documents = report["models"], report.get("held_out", {}).get("documents")
    rows = []
    for key in sorted(found, key=place_of):
        figure = figure_of(key)
        difference, low, high = figure.signed([found[key]["difference"], *found[key]["interval"]])
        own, other = (figure.value(models.get(arm, {}).get(key)) for arm in ("student", "baseline"))
        found_out = outcome(figure, found[key], documents)
        zero = "which means nothing for one document" if documents == 1 else "which includes zero"
        zero = zero if found_out == UNCLEAR else "clear of zero"
        rows.append(Comparison(figure, found_out, own, other, difference, low, high, zero))
    return rows


def interval_plot(report: dict[str, Any]) -> Any:
    """The differences in percent of the baseline's value; None where no figure has a better side and a base."""
    documents = report.get("held_out", {}).get("documents")
    rows = []
    for key in sorted(report.get("differences", {}), key=place_of):
        figure, found = figure_of(key), report["differences"][key]
        base = report["models"].get("baseline", {}).get(key)
        numbers = [found["difference"], *found["interval"]]
        if not base or figure.lower_is_better is None or not all(is_number(number) for number in numbers):
            continue
        sign = -100 if figure.lower_is_better else 100
        value, *edges = [sign * number / abs(base) for number in numbers]
        low, high = sorted(edges)
        rows.append(plots.Interval(figure.title, value, low, high, outcome(figure, found, documents) != UNCLEAR))
    if not rows:
        return None
    said = [f"{row.title} {row.value:+.1f}% ({row.low:+.1f} to {row.high:+.1f})" for row in rows]
    label = "Student against baseline in percent of the baseline's value, positive is better: " + ", ".join(said)
    return plots.intervals("intervals", label, rows)
