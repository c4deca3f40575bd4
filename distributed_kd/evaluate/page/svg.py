"""Drawing for the page: matplotlib's figures as SVG to put into HTML.

A plot has no colour, font or size of its own: matplotlib draws with one stand-in colour for each role, and what it
wrote is then rewritten to the style sheet's variables, so that light, dark and print are the page's business alone.
Plots are drawn for a phone's width and laid out side by side where there is room, so their text is never scaled down
to where it cannot be read. The same data give the same bytes: no date, no random ids, no matplotlibrc.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 360  # units of the viewBox; the style sheet decides how large a unit is
_ROLES = ("ink", "muted", "rule", "paper", "teacher", "student", "baseline", "other")
COLOURS = {role: f"#0a0b{0x10 + place:02x}" for place, role in enumerate(_ROLES)}
_DASHES = {"teacher": (2.0, 2.0), "student": (), "baseline": (6.0, 3.0), "other": (6.0, 2.4, 1.2, 2.4)}


def role(model: str) -> str:
    """The style-sheet variable and dash pattern of a model's lines."""
    return model if model in _DASHES else "other"


def dashes(model: str) -> str:
    """The same as an SVG `stroke-dasharray`, for the key that stands beside the plots."""
    return " ".join(f"{length:g}" for length in _DASHES[role(model)]) or "none"


@contextmanager
def style() -> Iterator[None]:
    """What is drawn within has the page's lines and sizes, whatever this machine's matplotlibrc says."""
    muted, rule = COLOURS["muted"], COLOURS["rule"]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({
            "svg.fonttype": "none", "svg.hashsalt": "distributed_kd", "font.size": 11,
            "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": rule, "axes.linewidth": 0.8,
            "axes.labelcolor": muted, "axes.labelsize": 11, "text.color": COLOURS["ink"],
            "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": rule, "grid.linewidth": 0.6,
            "xtick.color": rule, "ytick.color": rule, "xtick.labelcolor": muted, "ytick.labelcolor": muted,
            "xtick.labelsize": 10.5, "ytick.labelsize": 10.5, "xtick.major.size": 3, "ytick.major.size": 0,
        })  # fmt: skip
        yield


def new_figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """In units of the viewBox."""
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    return figure, figure.add_subplot()


def line(model: str) -> dict[str, Any]:
    """matplotlib's arguments for the model's lines."""
    pattern = _DASHES[role(model)]
    # matplotlib counts dashes in line widths; the key beside the plots counts them in pixels.
    style: Any = (0, tuple(length / 1.8 for length in pattern)) if pattern else "-"
    return {"color": COLOURS[role(model)], "linewidth": 1.8, "linestyle": style}


def svg(figure: Figure, name: str, label: str) -> Markup:
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
    for role_name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{role_name})")
    head = Markup('<svg class="plot" {} role="img" aria-label="{}">').format(Markup(box[0]), escape(label))
    return head + Markup(re.sub(r">\s+<", "><", body).strip())
