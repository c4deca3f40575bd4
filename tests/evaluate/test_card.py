"""The model card tells what the report has, of one teacher, of several or of none."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from distributed_kd.evaluate.card import card_of
from tests.evaluate.test_page import report


def report_of(*teachers: str, task: str = "causal_lm") -> dict[str, Any]:
    made = report()
    named = {"teachers": [{"model": name} for name in teachers], "corpus": {"task": task, "source": ["/data/texts/"]}}
    made["recipe"] |= named | {
        "workdir": "/data/runs/mine", "objective": {"temperature": 2.0, "alpha": 0.5},
        "capture": {"address": "10.0.0.1:6379", "codec": "plain-1"},
    }  # fmt: skip
    return made


def test_a_teacher_of_the_hub_is_its_base() -> None:
    card = ModelCard(card_of(report_of("owner/teacher")))
    assert (card.data.base_model, card.data.pipeline_tag) == (["owner/teacher"], "text-generation")
    assert "**Retention 0.627**" in card.text and "T = 2 with alpha = 0.5" in " ".join(card.text.split())
    assert "| held-out cross-entropy, nats | 3.630 | 4.785 | 5.119 |" in card.text
    assert "| cache | `299f" in card.text
    for place in ("/data", "10.0.0.1", "workdir"):
        assert place not in card.text


@pytest.mark.parametrize("is_adapter", [False, True])
def test_several_teachers_and_folders(is_adapter: bool) -> None:
    card = ModelCard(card_of(report_of("/models/one", "owner/two", task="classification"), is_adapter))
    assert card.data.base_model == ["owner/two"] and card.data.pipeline_tag is None
    assert card.data.library_name == ("peft" if is_adapter else "transformers")
    assert "`one`, `owner/two`" in card.text and "/models" not in card.text


def test_no_teacher_and_figures_that_need_one() -> None:
    made = report_of()
    del made["cache"], made["models"]["teacher"], made["models"]["baseline"]
    del made["models"]["student"]["agreement"], made["models"]["student"]["kl_from_teacher"]
    card = ModelCard(card_of(made | {"retention": None}))
    assert "A student of hard labels alone" in card.text and "Retention" not in card.text
    assert "| accuracy | 0.207 |" in card.text
