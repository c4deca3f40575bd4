"""A DistilBERT out of some of a BERT's layers (Sanh et al., 2019): the same numbers under transformers' other names.

DistilBERT has no token types and no pooler. A text is of type 0 throughout, so that row of the token types is added to
every position embedding: left out it would ruin the weights, its norm being about theirs. A masked language model of
all layers computes what the teacher does. A classifier's head is fresh: BERT's reads the pooler, and DistilBERT has a
layer of another activation in its place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from distributed_kd.errors import RequestError
from distributed_kd.models.config import load_config
from distributed_kd.models.headless import open_for_task

_OUTSIDE_LAYERS = {
    "bert.embeddings.word_embeddings": "distilbert.embeddings.word_embeddings",
    "bert.embeddings.position_embeddings": "distilbert.embeddings.position_embeddings",
    "bert.embeddings.LayerNorm": "distilbert.embeddings.LayerNorm",
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
    "cls.predictions.decoder": "vocab_projector",
}
_IN_A_LAYER = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
_CONFIGURATION = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_attention_heads": "n_heads",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
    "tie_word_embeddings": "tie_word_embeddings",
    "id2label": "id2label",
    "label2id": "label2id",
}
_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.(.+)")
_TOKEN_TYPES = "bert.embeddings.token_type_embeddings.weight"
_POSITIONS = "distilbert.embeddings.position_embeddings.weight"


def distilbert_of(bert: Path, layers: list[int], task: str, seed: int) -> Any:
    """Of these of a BERT's layers a `DistilBertForMaskedLM` or, where `task` is classification, a
    `DistilBertForSequenceClassification`, in float32.

    `bert` may be an encoder without a head; the same seed gives the same fresh head. Raises `RequestError`
    for a model that is no BERT encoder, or whose weights are not all there.
    """
    import transformers

    config = load_config(bert)
    if config.model_type != "bert" or config.is_decoder:
        what = "a decoder" if config.model_type == "bert" else f"of the kind {config.model_type!r}"
        raise RequestError(
            f"model {bert} is {what}, and student.architecture: distilbert is made of a BERT encoder's layers; "
            "leave it out to keep the teacher's own architecture"
        )
    teacher = open_for_task(bert, task, seed)
    own = config.to_dict()
    settings = {new: own[old] for old, new in _CONFIGURATION.items() if old in own}
    classes = {"masked_lm": "DistilBertForMaskedLM", "classification": "DistilBertForSequenceClassification"}
    student = getattr(transformers, classes[task])(transformers.DistilBertConfig(n_layers=len(layers), **settings))
    missing, unknown = student.load_state_dict(_renamed(teacher.state_dict(), layers), strict=False)
    assert not unknown, unknown
    assert all(name.startswith(("pre_classifier.", "classifier.")) for name in missing), missing
    return student.eval()


def _renamed(weights: dict[str, Tensor], layers: list[int]) -> dict[str, Tensor]:
    """What DistilBERT has of it, token type 0 in the position embeddings."""
    found = {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        if module in _OUTSIDE_LAYERS:
            found[f"{_OUTSIDE_LAYERS[module]}.{kind}"] = tensor
        elif (place := _LAYER.fullmatch(module)) and int(place[1]) in layers:
            found[f"distilbert.transformer.layer.{layers.index(int(place[1]))}.{_IN_A_LAYER[place[2]]}.{kind}"] = tensor
    found[_POSITIONS] = found[_POSITIONS] + weights[_TOKEN_TYPES][0]
    return found
