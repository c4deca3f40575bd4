"""Classifiers of texts and of features: body and head apart give what the model itself gives, in any batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_kd.errors import RequestError
from distributed_kd.models import parts
from distributed_kd.models.config import (
    architecture_of,
    folder_of_config,
    load_config,
    refuse_other_task,
    vocabulary_size,
)
from distributed_kd.models.feature_classifier import FeatureClassifier, spliced
from distributed_kd.models.feature_config import FeatureClassifierConfig
from distributed_kd.models.load import auto_class, load_model
from distributed_kd.models.tokenizer import inputs_sha256
from distributed_kd.recipe import Corpus

CPU = torch.device("cpu")
CONFIG = {
    "model_type": "feature_classifier", "features": 3, "num_labels": 5, "context": [-2, 0, 2], "hidden_sizes": [16, 8],
}  # fmt: skip
SMALL = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "num_labels": 3,
}  # fmt: skip


def text_classifiers() -> dict[str, Any]:
    import transformers as t

    return {
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**SMALL)),
        "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**SMALL)),
        "distilbert": lambda: t.DistilBertForSequenceClassification(
            t.DistilBertConfig(
                vocab_size=50, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64, num_labels=3
            )
        ),
        "llama": lambda: t.LlamaForSequenceClassification(t.LlamaConfig(**SMALL)),
    }


@pytest.mark.parametrize("family", text_classifiers())
def test_a_texts_class_does_not_depend_on_what_it_is_batched_with(family: str) -> None:
    torch.manual_seed(0)
    model = text_classifiers()[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    parts.check(model)
    body, head = parts.body_of(model), parts.head_of(model)
    ids = torch.arange(5, 15)[None]
    batch = torch.cat([torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1), torch.arange(20, 34)[None]])
    places = torch.arange(14)[None].expand(2, -1)
    with torch.no_grad():
        own = model(input_ids=ids).logits
        hidden = body(batch, places, torch.stack([places[0] < 10, places[0] < 14]))
        assert hidden.shape[:2] == (2, 14) and head.rows == 3
        mask = torch.stack([places[0] < 10, places[0] < 14]).long()
        torch.testing.assert_close(parts.hidden_states(model, batch, places, mask), hidden, rtol=0.0, atol=0.0)
        torch.testing.assert_close(head.logits(hidden[0, 0]), own[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(input_ids=ids).logits, own, rtol=0.0, atol=0.0)  # it is as it was


def test_each_position_is_seen_with_its_neighbours_and_zeros_beyond_the_ends() -> None:
    features = torch.arange(8.0).reshape(1, 4, 2) + 1.0
    found = spliced(features, [-1, 0, 2])
    assert found[0].tolist() == [
        [0.0, 0.0, 1.0, 2.0, 5.0, 6.0],
        [1.0, 2.0, 3.0, 4.0, 7.0, 8.0],
        [3.0, 4.0, 5.0, 6.0, 0.0, 0.0],
        [5.0, 6.0, 7.0, 8.0, 0.0, 0.0],
    ]


def test_a_feature_classifier_is_that_of_its_formula_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    model = (
        FeatureClassifier(
            FeatureClassifierConfig(**{key: value for key, value in CONFIG.items() if key != "model_type"})
        )
        .double()
        .eval()
    )
    parts.check(model)
    features = torch.randn(1, 6, 3, dtype=torch.float64)
    padded = torch.cat([features, torch.zeros(1, 4, 3, dtype=torch.float64)], dim=1)
    ids = torch.zeros(1, 10, dtype=torch.long)
    with torch.no_grad():
        hidden = parts.body_of(model)(ids, ids, None, padded)
        torch.testing.assert_close(parts.hidden_states(model, ids, ids, ids, padded), hidden, rtol=0.0, atol=0.0)
        ours = parts.head_of(model).logits(hidden)[0, :6]
        for place in range(6):
            around = [features[0, at] if 0 <= at < 6 else torch.zeros(3) for at in (place - 2, place, place + 2)]
            hidden = torch.cat(around).double()
            for layer in model.layers:
                hidden = (layer.weight @ hidden + layer.bias).clamp(min=0)
            expected = model.classifier.weight @ hidden + model.classifier.bias
            torch.testing.assert_close(ours[place], expected, rtol=1e-10, atol=1e-12)


def test_a_feature_classifier_is_made_saved_and_opened_as_any_model(tmp_path: Path) -> None:
    folder = folder_of_config(CONFIG)
    assert json.loads((folder / "config.json").read_text()) == CONFIG and folder == folder_of_config(dict(CONFIG))
    config = load_config(folder)
    assert (architecture_of(config), vocabulary_size(config)) == ("FeatureClassifier", 5)
    model = auto_class(folder).from_config(config)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, torch.float32, CPU)
    features = torch.randn(2, 7, 3)
    torch.testing.assert_close(again(features).logits, model.eval()(features).logits, rtol=0.0, atol=0.0)
    assert inputs_sha256(tmp_path) == inputs_sha256(folder)
    assert inputs_sha256(folder_of_config(CONFIG | {"num_labels": 6})) != inputs_sha256(folder)
    assert inputs_sha256(folder_of_config(CONFIG | {"hidden_sizes": [4]})) == inputs_sha256(folder)


def test_a_model_of_another_task_or_other_inputs_is_refused() -> None:
    config = load_config(folder_of_config(CONFIG))
    refuse_other_task(config, "m", Corpus(source="x", task="frames", features_column="f"))
    with pytest.raises(
        RequestError, match=r"is a FeatureClassifier, which does not go with corpus\.task: causal_lm; ch"
    ):
        refuse_other_task(config, "m", Corpus(source="x"))
    with pytest.raises(RequestError, match=r"which takes features; set corpus\.features_column, or choose another"):
        refuse_other_task(config, "m", Corpus(source="x", task="classification"))
