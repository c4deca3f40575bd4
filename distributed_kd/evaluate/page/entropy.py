"""Agreement and KL where the teacher is certain and where it is not."""

from __future__ import annotations

from typing import Any

from distributed_kd.evaluate.figures import figure_of
from distributed_kd.evaluate.page import plots
from distributed_kd.evaluate.page.svg import role

_SHOWN = ("agreement", "kl_from_teacher")


def entropy_plots(bins: list[dict[str, Any]]) -> dict[str, Any] | None:
    """A plot a figure over the teacher's mean entropy in each bin, and a row a bin; None where there is none."""
    if not bins:
        return None
    models = list(bins[0]["models"])
    shown = []
    for key in _SHOWN:
        figure = figure_of(key)
        columns = {model: [row["models"][model][key] for row in bins] for model in models}
        said = [f"{model} from {figure.bare(own[0])} to {figure.bare(own[-1])}" for model, own in columns.items()]
        label = f"{figure.heading} where the teacher is certain and where it is not: {', '.join(said)}"
        x = plots.Axis("the teacher\u2019s entropy, nats")
        y = plots.Axis(figure.in_terminal if figure.unit != "%" else figure.title, percent=figure.unit == "%")
        drawn = [plots.Line(role(model), [row["mean"] for row in bins], own) for model, own in columns.items()]
        shown.append(plots.lines(f"entropy-{key}", label, x, y, drawn))
    rows = [
        {
            "low": f"{row['entropy'][0]:.2f}",
            "high": f"{row['entropy'][1]:.2f}",
            "positions": f"{row['positions']:,}",
            "values": [figure_of(key).bare(row["models"][model][key]) for key in _SHOWN for model in models],
        }
        for row in bins
    ]
    return {"models": models, "figures": [figure_of(key) for key in _SHOWN], "plots": shown, "rows": rows}
