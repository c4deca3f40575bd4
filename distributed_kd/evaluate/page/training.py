"""The curves of training, of each arm."""

from __future__ import annotations

from typing import Any

from distributed_kd.evaluate.page import plots
from distributed_kd.evaluate.words import is_number

Metrics = dict[str, list[dict[str, Any]]]


def curves_of(metrics: Metrics) -> list[dict[str, Any]]:
    """A plot a loss that any arm has; `metrics` has one mapping a step for each arm."""
    shown = []
    for key, title, not_read in (
        ("cross_entropy", "cross-entropy", "never reads the hard labels"),
        ("divergence", "divergence from the teacher", "reads the hard labels alone"),
    ):
        arms: dict[str, tuple[list[float], list[float]]] = {}
        for arm, steps in metrics.items():
            points = [(line["step"] + 1, line[key]) for line in steps if is_number(line.get(key))]
            if points:
                arms[arm] = ([step for step, _ in points], [value for _, value in points])
        if not arms:
            continue
        said = [f"{arm} from {values[0]:.2f} to {values[-1]:.2f} nats" for arm, (_, values) in arms.items()]
        label = f"Training {title} over {max(steps[-1] for steps, _ in arms.values()):,} steps: {', '.join(said)}"
        missing = [arm for arm, steps in metrics.items() if steps and arm not in arms]
        plot = plots.curve(f"curve-{key}", label, arms, f"{title}, nats")
        most = max(len(steps) for steps, _ in arms.values())
        curve = {"title": title, "plot": plot, "missing": missing, "reason": not_read, "each": plots.thinning(most)}
        shown.append(curve)
    return shown
