"""A classifier of positions that are vectors of numbers: an image, or a frame of speech with those around it.

A stack of linear layers over each position's features, spliced with those of its neighbours, as the acoustic models of
Hinton, Vinyals and Dean (2015, section 4) are. It is a model of transformers' kind, so it is configured, saved and
opened as any other: a folder with a `config.json` of `model_type: feature_classifier` is one that `student.init:
random` starts from.

Shapes: B sequences, S positions, F features, C classes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from distributed_kd.models.feature_config import FeatureClassifierConfig


class FeatureClassifier(PreTrainedModel):
    config_class = FeatureClassifierConfig
    config: FeatureClassifierConfig
    main_input_name = "features"

    def __init__(self, config: FeatureClassifierConfig) -> None:
        super().__init__(config)
        widths = [config.features * len(config.context), *config.hidden_sizes]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(widths[-1], int(config.num_labels or 0))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """He et al. (2015): the variance that rectified layers keep."""
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """The layer that takes the features: what `student.freeze: [embeddings]` names."""
        return self.layers[0] if len(self.layers) else self.classifier

    def get_output_embeddings(self) -> nn.Module:
        return self.classifier

    def encode(self, features: Tensor) -> Tensor:
        """[B, S, F], 0 where a row is padded, to the last hidden states [B, S, D]."""
        hidden = spliced(features.to(self.classifier.weight.dtype), self.config.context)
        for layer in self.layers:
            hidden = self.dropout(torch.relu(layer(hidden)))
        return hidden

    def forward(self, features: Tensor) -> TokenClassifierOutput:
        return TokenClassifierOutput(logits=self.classifier(self.encode(features)))


def spliced(features: Tensor, context: list[int]) -> Tensor:
    """[B, S, F] to [B, S, F * len(context)]: each position's neighbours side by side, 0 beyond a sequence's ends."""
    positions = features.shape[1]
    widest = max(map(abs, context))
    padded = nn.functional.pad(features, (0, 0, widest, widest))
    return torch.cat([padded[:, widest + offset : widest + offset + positions] for offset in context], dim=-1)


def register() -> None:
    """Tells transformers' factory of it."""
    AutoModelForTokenClassification.register(FeatureClassifierConfig, FeatureClassifier, exist_ok=True)
