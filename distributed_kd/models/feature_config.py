"""The configuration of `feature_classifier.py`'s model, without torch."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig


class FeatureClassifierConfig(PretrainedConfig):
    """features: F. context: which neighbours a position sees, as offsets; [0] is itself alone. num_labels: C."""

    model_type = "feature_classifier"

    def __init__(
        self,
        features: int = 1,
        context: list[int] | None = None,
        hidden_sizes: list[int] | None = None,
        dropout: float = 0.0,
        **more: Any,
    ) -> None:
        self.features = features
        self.context = [0] if context is None else context
        self.hidden_sizes = [256, 256] if hidden_sizes is None else hidden_sizes
        self.dropout = dropout
        super().__init__(**more)


def register() -> None:
    """Tells transformers' factory of it."""
    AutoConfig.register(FeatureClassifierConfig.model_type, FeatureClassifierConfig, exist_ok=True)
