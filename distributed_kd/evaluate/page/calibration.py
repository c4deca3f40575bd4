"""How far confidence and accuracy lie apart, as plots."""

from __future__ import annotations

from typing import Any

from distributed_kd.evaluate.page import plots
from distributed_kd.evaluate.words import listed, percent


def calibration_plots(calibration: dict[str, list[dict[str, float]]]) -> dict[str, Any] | None:
    """Of the bins of each model; None where no bin holds a position."""
    known = {model: bins for model, bins in calibration.items() if sum(row["positions"] for row in bins)}
    if not known:
        return None
    highest = [f"{model} {percent(max(row['confidence'] for row in bins))}" for model, bins in known.items()]
    return {
        "models": list(known),
        "reliability": plots.reliability(
            "reliability", f"Accuracy over confidence for {listed(list(known), 'and')}, with the diagonal", known
        ),
        "confidence": plots.confidence(
            "confidence", f"Share of positions over confidence; most confident bin: {', '.join(highest)}", known
        ),
    }
