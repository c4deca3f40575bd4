"""What a configuration says that a model predicts."""

from __future__ import annotations

from typing import Any

import pytest

from distributed_kd.errors import RequestError
from distributed_kd.models.config import config_of_student, lacks_head, refuse_other_task
from distributed_kd.recipe import Corpus, Student

MASKED = Corpus(source="texts", task="masked_lm")
TEXTS = Corpus(source="texts", task="classification")
ENCODER = Student(model="encoder")


def config_of(kind: str, head: str = "Model") -> Any:
    import transformers

    return getattr(transformers, f"{kind}Config")(architectures=[f"{kind}{head}"])


@pytest.mark.parametrize(("kind", "lacks"), [("Bert", True), ("DistilBert", True), ("Roberta", True), ("Llama", False)])
def test_a_body_that_there_are_masked_language_models_of_lacks_its_head(kind: str, lacks: bool) -> None:
    assert lacks_head(config_of(kind), "masked_lm") is lacks
    assert not lacks_head(config_of(kind), "causal_lm")


def test_a_classifiers_head_is_lacking_where_there_is_none_or_another() -> None:
    lacking = {head: lacks_head(config_of("Bert", head), "classification") for head in ("Model", "ForMaskedLM")}
    assert lacking == {"Model": True, "ForMaskedLM": True}
    assert not lacks_head(config_of("Bert", "ForSequenceClassification"), "classification")
    assert not lacks_head(config_of("Bert", "ForSequenceClassification"), "masked_lm")


def test_a_body_is_refused_unless_it_is_a_student() -> None:
    with pytest.raises(RequestError, match=r"encoder is a BertModel, which has no head for corpus\.task: masked_lm"):
        refuse_other_task(config_of("Bert"), "encoder", MASKED)
    refuse_other_task(config_of_student(config_of("Bert"), ENCODER, "masked_lm"), "encoder", MASKED)
    with pytest.raises(RequestError, match=r"is a LlamaModel, which does not go with corpus\.task: masked_lm"):
        refuse_other_task(config_of_student(config_of("Llama"), ENCODER, "masked_lm"), "decoder", MASKED)


def test_a_student_says_of_how_many_classes_its_head_is() -> None:
    with pytest.raises(RequestError, match=r"has no head for .*classification; say of how many classes in student\.cl"):
        config_of_student(config_of("Bert"), ENCODER, "classification")
    student = Student(model="encoder", classes=3)
    with pytest.raises(RequestError, match=r"whose head is its own: leave out student\.classes"):
        config_of_student(config_of("Bert", "ForSequenceClassification"), student, "classification")
    config = config_of_student(config_of("Bert", "ForMaskedLM"), student, "classification")
    refuse_other_task(config, "encoder", TEXTS)
    assert config.num_labels == 3 and config.architectures == ["BertForSequenceClassification"]
