"""Quantised teachers load by their own configuration, and their targets are their own forward's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed_kd.recipe import Capture, Targets, Teacher
from distributed_kd.teacher.forward import TeacherForward
from tests import toys
from tests.teacher.test_targets import sequences_of

pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize(
    "how",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
        {"load_in_8bit": True},
    ],
    ids=["nf4", "int8"],
)
@pytest.mark.parametrize("skip", [None, []], ids=["plain head", "packed head"])
def test_targets_are_those_of_its_own_forward(tmp_path: Path, how: dict[str, Any], skip: list[str] | None) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    changes = {"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": skip is None}
    whole = toys.save_model(tmp_path / "whole", layers=2, seed=1, **changes)
    own = AutoModelForCausalLM.from_pretrained(
        whole, quantization_config=BitsAndBytesConfig(**how, llm_int8_skip_modules=skip), dtype=torch.float32,
        device_map={"": "cpu"},
    )  # fmt: skip
    own.save_pretrained(tmp_path / "quantised")
    toys.save_tokenizer(tmp_path / "quantised")

    def targets_of(folder: Path) -> Any:
        teacher = TeacherForward(Teacher(model=str(folder), dtype="float32"), Targets(k=5), Capture())
        assert teacher.vocabulary_size == toys.VOCABULARY
        return teacher(sequences)[0]

    sequences = sequences_of(list(range(2, 18)))
    soft = targets_of(tmp_path / "quantised")
    with torch.inference_mode():
        logits = own(torch.from_numpy(sequences[0].input_ids[None].astype(np.int64)), use_cache=False).logits[0]
    values, ids = logits[torch.from_numpy(sequences[0].loss_mask)].topk(5, dim=1)
    assert soft.ids.tolist() == ids.tolist()
    np.testing.assert_allclose(soft.logits, (values - values[:, :1]).numpy(), rtol=1e-3, atol=1e-3)
    assert np.abs(soft.logits - targets_of(whole).logits).max() > 1e-3, "it was not quantised"
