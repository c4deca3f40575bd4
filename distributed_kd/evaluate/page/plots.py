"""The page's plots, as SVG to put into HTML.

A plot has no colour, font or size of its own: matplotlib draws with one stand-in colour for each role, and what it
wrote is then rewritten to the style sheet's variables, so that light, dark and print are the page's business alone.
Plots are drawn for a phone's width and laid out side by side where there is room, so their text is never scaled down
to where it cannot be read. The same data give the same bytes: no date, no random ids, no matplotlibrc.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

WIDTH = 360  # units of the viewBox; the style sheet decides how large a unit is
MOST_POINTS = 600  # of a line: more are not seen, and a long run would make a page of many megabytes
_ROLES = ("ink", "muted", "rule", "paper", "teacher", "student", "baseline", "other")
_COLOURS = {role: f"#0a0b{0x10 + place:02x}" for place, role in enumerate(_ROLES)}
_DASHES = {"teacher": (2.0, 2.0), "student": (), "baseline": (6.0, 3.0), "other": (6.0, 2.4, 1.2, 2.4)}


@dataclass(frozen=True)
class Interval:
    """A row of `intervals`: where the difference lies, in percent of the baseline's value, right being better."""

    title: str
    value: float
    low: float
    high: float
    clear: bool


def role(model: str) -> str:
    """The style-sheet variable and dash pattern of a model's lines."""
    return model if model in _DASHES else "other"


def dashes(model: str) -> str:
    """The same as an SVG `stroke-dasharray`, for the key that stands beside the plots."""
    return " ".join(f"{length:g}" for length in _DASHES[role(model)]) or "none"


def thinning(steps: int) -> int:
    """How many steps a point of `curve` stands for."""
    return -(-steps // MOST_POINTS)


def curve(name: str, label: str, arms: Mapping[str, tuple[Sequence[float], Sequence[float]]], y_label: str) -> Markup:
    """Steps and values of each arm: the raw line faint, its moving average on top."""
    with _style():
        figure, axes = _figure(240)
        for arm, (steps, values) in arms.items():
            x, y = _thinned(np.asarray(steps, float)), _thinned(np.asarray(values, float))
            axes.plot(x, y, color=_COLOURS[role(arm)], linewidth=0.8, alpha=0.35)
            axes.plot(x, _smooth(y), **_line(arm))
        axes.set_xlabel("step")
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.margins(x=0.01)
        return _svg(figure, name, label)


def reliability(name: str, label: str, calibration: Mapping[str, list[dict[str, float]]]) -> Markup:
    """Accuracy over confidence; a dot's area is its share of the positions, so that thin bins weigh little."""
    with _style():
        figure, axes = _figure(320)
        axes.plot([0, 1], [0, 1], color=_COLOURS["rule"], linewidth=1.4)
        for model, bins in calibration.items():
            x, y, share = _columns(bins)
            axes.plot(x, y, **_line(model) | {"linewidth": 1.1})
            axes.scatter(x, y, s=4 + 260 * share, color=_COLOURS[role(model)], alpha=0.75, linewidths=0)
        _as_percent(axes, "confidence", "accuracy")
        axes.set_ylim(-0.02, 1.02)
        return _svg(figure, name, label)


def confidence(name: str, label: str, calibration: Mapping[str, list[dict[str, float]]]) -> Markup:
    """How much of the positions lies at which confidence."""
    with _style():
        figure, axes = _figure(320)
        for model, bins in calibration.items():
            x, _, share = _columns(bins)
            axes.plot(x, share, **_line(model), marker="o", markersize=2.5)
        _as_percent(axes, "confidence", "share of positions")
        axes.set_ylim(bottom=0)
        return _svg(figure, name, label)


def intervals(name: str, label: str, rows: Sequence[Interval]) -> Markup:
    """A dot and its interval for each row, on one axis; hollow where the interval holds zero."""
    with _style():
        figure, axes = _figure(58 + 27 * len(rows), width=340)  # it stands beside a table
        axes.axvline(0, color=_COLOURS["ink"], linewidth=0.9)
        for place, row in enumerate(rows):
            colour = _COLOURS["student"]
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.8, solid_capstyle="round")
            face = colour if row.clear else _COLOURS["paper"]
            axes.plot(row.value, place, "o", markersize=6.5, color=colour, markerfacecolor=face, markeredgewidth=1.6)
        axes.set_yticks(range(len(rows)), [row.title for row in rows], color=_COLOURS["ink"])
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
        return _svg(figure, name, label)


@contextmanager
def _style() -> Iterator[None]:
    muted, rule = _COLOURS["muted"], _COLOURS["rule"]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({
            "svg.fonttype": "none", "svg.hashsalt": "distributed_kd", "font.size": 11,
            "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": rule, "axes.linewidth": 0.8,
            "axes.labelcolor": muted, "axes.labelsize": 11, "text.color": _COLOURS["ink"],
            "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": rule, "grid.linewidth": 0.6,
            "xtick.color": rule, "ytick.color": rule, "xtick.labelcolor": muted, "ytick.labelcolor": muted,
            "xtick.labelsize": 10.5, "ytick.labelsize": 10.5, "xtick.major.size": 3, "ytick.major.size": 0,
        })  # fmt: skip
        yield


def _figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    return figure, figure.add_subplot()


def _line(model: str) -> dict[str, Any]:
    pattern = _DASHES[role(model)]
    # matplotlib counts dashes in line widths; the key beside the plots counts them in pixels.
    style: Any = (0, tuple(length / 1.8 for length in pattern)) if pattern else "-"
    return {"color": _COLOURS[role(model)], "linewidth": 1.8, "linestyle": style}


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


def _svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an `svg` element that says `label` to who cannot see it; ids begin with `name`."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    text = written.getvalue()
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    body = text[text.index(">", box.end()) + 1 :]
    # matplotlib's own style element speaks for every element of the page that it lands in.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    # A font's name goes, its size stays: the page's own font is used.
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    # Two plots on one page must not share an id; those that nothing refers to are dropped.
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    for role_name, colour in _COLOURS.items():
        body = body.replace(colour, f"var(--{role_name})")
    head = Markup('<svg class="plot" {} role="img" aria-label="{}">').format(Markup(box[0]), escape(label))
    return head + Markup(re.sub(r">\s+<", "><", body).strip())
