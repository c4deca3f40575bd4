"""What several seeds of one training say together."""

from __future__ import annotations

import numpy as np


def mean_and_sd(values: list[float]) -> dict[str, float]:
    """The standard deviation is the sample's, 0 of one value."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
