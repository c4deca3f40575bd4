"""The page's plots, each a function of numbers to SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis as DrawnAxis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from distributed_kd.evaluate.page.svg import COLOURS, line, new_figure, role, style, svg

MOST_POINTS = 600  # of a line: more are not seen, and a long run would make a page of many megabytes
_MOST_TICKS = 8


@dataclass(frozen=True)
class Interval:
    """A row of `intervals`: where the difference lies, in percent of the baseline's value, right being better."""

    title: str
    value: float
    low: float
    high: float
    clear: bool


def thinning(steps: int) -> int:
    """How many steps a point of `curve` stands for."""
    return -(-steps // MOST_POINTS)


def curve(name: str, label: str, arms: Mapping[str, tuple[Sequence[float], Sequence[float]]], y_label: str) -> Markup:
    """Steps and values of each arm: the raw line faint, its moving average on top."""
    with style():
        figure, axes = new_figure(240)
        for arm, (steps, values) in arms.items():
            x, y = _thinned(np.asarray(steps, float)), _thinned(np.asarray(values, float))
            axes.plot(x, y, color=COLOURS[role(arm)], linewidth=0.8, alpha=0.35)
            axes.plot(x, _smooth(y), **line(arm))
        axes.set_xlabel("step")
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.margins(x=0.01)
        return svg(figure, name, label)


def reliability(name: str, label: str, calibration: Mapping[str, list[dict[str, float]]]) -> Markup:
    """Accuracy over confidence; a dot's area is its share of the positions, so that thin bins weigh little."""
    with style():
        figure, axes = new_figure(320)
        axes.plot([0, 1], [0, 1], color=COLOURS["rule"], linewidth=1.4)
        for model, bins in calibration.items():
            x, y, share = _columns(bins)
            axes.plot(x, y, **line(model) | {"linewidth": 1.1})
            axes.scatter(x, y, s=4 + 260 * share, color=COLOURS[role(model)], alpha=0.75, linewidths=0)
        _as_percent(axes, "confidence", "accuracy")
        axes.set_ylim(-0.02, 1.02)
        return svg(figure, name, label)


def confidence(name: str, label: str, calibration: Mapping[str, list[dict[str, float]]]) -> Markup:
    """How much of the positions lies at which confidence."""
    with style():
        figure, axes = new_figure(320)
        for model, bins in calibration.items():
            x, _, share = _columns(bins)
            axes.plot(x, share, **line(model), marker="o", markersize=2.5)
        _as_percent(axes, "confidence", "share of positions")
        axes.set_ylim(bottom=0)
        return svg(figure, name, label)


def intervals(name: str, label: str, rows: Sequence[Interval]) -> Markup:
    """A dot and its interval for each row, on one axis; hollow where the interval holds zero."""
    with style():
        figure, axes = new_figure(58 + 27 * len(rows), width=340)  # it stands beside a table
        axes.axvline(0, color=COLOURS["ink"], linewidth=0.9)
        for place, row in enumerate(rows):
            colour = COLOURS["student"]
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.8, solid_capstyle="round")
            face = colour if row.clear else COLOURS["paper"]
            axes.plot(row.value, place, "o", markersize=6.5, color=colour, markerfacecolor=face, markeredgewidth=1.6)
        axes.set_yticks(range(len(rows)), [row.title for row in rows], color=COLOURS["ink"])
        for text in axes.get_yticklabels():
            text.set_parse_math(False)  # a `$` in a figure's name is a `$`
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+g}%".replace("-", "\u2212") if value else "0%")
        )
        axes.set_xlabel("worse  \u2190  student  \u2192  better")
        return svg(figure, name, label)


@dataclass(frozen=True)
class Axis:
    """Of `lines`. ticks: where they are to be, thinned where they are many; chosen by the range when not given."""

    label: str
    logarithmic: bool = False
    percent: bool = False
    ticks: Sequence[float] = ()


@dataclass(frozen=True)
class Line:
    """Of `lines`; `role` is its colour and dashes. marked: the place of the point that is set off, if any."""

    role: str
    x: Sequence[float]
    y: Sequence[float]
    marked: int | None = None


def lines(name: str, label: str, x: Axis, y: Axis, drawn: Sequence[Line]) -> Markup:
    """Lines with a dot a point. What has no place on a logarithmic axis is left out."""
    with style():
        figure, axes = new_figure(240)
        for one in drawn:
            points = np.array([one.x, one.y], float)
            is_there = (points[0] > 0) | (not x.logarithmic)
            is_there &= (points[1] > 0) | (not y.logarithmic)
            axes.plot(*points[:, is_there], **line(one.role), marker="o", markersize=3)
            if one.marked is not None and is_there[one.marked]:
                at = points[:, one.marked : one.marked + 1]
                axes.plot(*at, "o", color=COLOURS[one.role], markersize=9, markerfacecolor="none", markeredgewidth=1.6)
        for axis, scale, drawn_axis in ((x, axes.set_xscale, axes.xaxis), (y, axes.set_yscale, axes.yaxis)):
            if axis.logarithmic:
                scale("log")
            _ticks(drawn_axis, axis)
        axes.set_xlabel(x.label)
        axes.set_ylabel(y.label)
        return svg(figure, name, label)


def _ticks(drawn: DrawnAxis, axis: Axis) -> None:
    low, high = drawn.get_view_interval()
    drawn.set_minor_locator(NullLocator())
    if axis.ticks:
        drawn.set_ticks(list(axis.ticks[:: -(-len(axis.ticks) // _MOST_TICKS)]))
    elif axis.logarithmic:
        drawn.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,), numticks=7))
    else:
        drawn.set_major_locator(MaxNLocator(6))
    percent = PercentFormatter(1.0, decimals=None)  # as many as the range needs
    drawn.set_major_formatter(percent if axis.percent else FuncFormatter(lambda value, _: f"{value:g}"))


def _columns(bins: list[dict[str, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, accuracy and share of positions."""
    positions = np.array([row["positions"] for row in bins], float)
    x, y = (np.array([row[key] for row in bins], float) for key in ("confidence", "accuracy"))
    return x, y, positions / positions.sum()


def _as_percent(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def _thinned(values: np.ndarray) -> np.ndarray:
    """At most `MOST_POINTS` values: the means of equal runs of them."""
    each = thinning(len(values))
    return np.array([values[begin : begin + each].mean() for begin in range(0, len(values), each)])


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average, of a twentieth of the values; near the ends over those that there are."""
    reach = max(2, len(values) // 40)
    window = np.ones(2 * reach + 1)

    def summed(what: np.ndarray) -> np.ndarray:
        return np.convolve(what, window)[reach : reach + len(what)]

    return summed(values) / summed(np.ones(len(values)))
