"""What a configuration says that a model predicts."""

from __future__ import annotations

from typing import Any

import pytest

from distributed_kd.errors import RequestError
from distributed_kd.models.config import lacks_head, refuse_other_task
from distributed_kd.recipe import Corpus


def bare(kind: str) -> Any:
    import transformers

    return getattr(transformers, f"{kind}Config")(architectures=[f"{kind}Model"])


@pytest.mark.parametrize(("kind", "lacks"), [("Bert", True), ("DistilBert", True), ("Roberta", True), ("Llama", False)])
def test_a_body_that_there_are_masked_language_models_of_lacks_its_head(kind: str, lacks: bool) -> None:
    assert lacks_head(bare(kind), "masked_lm") is lacks
    assert not lacks_head(bare(kind), "causal_lm")


def test_a_body_is_refused_where_it_gets_no_head() -> None:
    masked = Corpus(source="texts", task="masked_lm")
    refuse_other_task(bare("Bert"), "encoder", masked, may_lack_head=True)
    with pytest.raises(RequestError, match=r"encoder is a BertModel, which has no head for corpus\.task: masked_lm"):
        refuse_other_task(bare("Bert"), "encoder", masked)
    with pytest.raises(RequestError, match=r"is a LlamaModel, which does not go with corpus\.task: masked_lm"):
        refuse_other_task(bare("Llama"), "decoder", masked, may_lack_head=True)
