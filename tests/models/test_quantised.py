"""Quantised teachers load by their own configuration, and their targets are their own forward's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distributed_kd.recipe import Capture, Targets, Teacher
from distributed_kd.teacher.forward import TeacherForward
from tests import toys
from tests.teacher.test_targets import sequences_of

SEQUENCES = sequences_of(list(range(2, 18)))
BLOCK = 32  # rows and columns of a weight that share a scale


def targets_of(folder: Path) -> Any:
    teacher = TeacherForward(Teacher(model=str(folder), dtype="float32"), Targets(k=5), Capture())
    assert teacher.vocabulary_size == toys.VOCABULARY
    return teacher(SEQUENCES)[0]


def check(quantised: Path, own: Any, whole: Path) -> None:
    """That its targets are `own`'s five largest logits, and not those of the `whole` from which it was made."""
    soft = targets_of(quantised)
    with torch.inference_mode():
        logits = own(torch.from_numpy(SEQUENCES[0].input_ids[None].astype(np.int64)), use_cache=False).logits[0]
    values, ids = logits[torch.from_numpy(SEQUENCES[0].loss_mask)].topk(5, dim=1)
    assert soft.ids.tolist() == ids.tolist()
    np.testing.assert_allclose(soft.logits, (values - values[:, :1]).numpy(), rtol=1e-3, atol=1e-3)
    assert np.abs(soft.logits - targets_of(whole).logits).max() > 1e-3, "it was not quantised"


@pytest.mark.parametrize(
    "how",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
        {"load_in_8bit": True},
    ],
    ids=["nf4", "int8"],
)
@pytest.mark.parametrize("skip", [None, []], ids=["plain head", "packed head"])
def test_four_and_eight_bits(tmp_path: Path, how: dict[str, Any], skip: list[str] | None) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    changes = {"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": skip is None}
    whole = toys.save_model(tmp_path / "whole", layers=2, seed=1, **changes)
    own = AutoModelForCausalLM.from_pretrained(
        whole, quantization_config=BitsAndBytesConfig(**how, llm_int8_skip_modules=skip), dtype=torch.float32,
        device_map={"": "cpu"},
    )  # fmt: skip
    own.save_pretrained(tmp_path / "quantised")
    toys.save_tokenizer(tmp_path / "quantised")
    check(tmp_path / "quantised", own, whole)


def test_eight_bit_floats_with_a_scale_a_block(tmp_path: Path) -> None:
    """As DeepSeek publishes weights; without a GPU transformers loads what they stand for."""
    from transformers import AutoModelForCausalLM

    whole = toys.save_model(tmp_path / "whole", layers=2, seed=1, hidden_size=64, intermediate_size=128)
    own = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    quantised = Path(shutil.copytree(whole, tmp_path / "quantised"))
    tensors = load_file(whole / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        blocks = tensors[name].float().view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
        packed = (blocks / scale).to(torch.float8_e4m3fn)
        tensors[name] = packed.view(rows, columns)
        tensors[f"{name}_scale_inv"] = scale.view(rows // BLOCK, columns // BLOCK)
        own.get_parameter(name).data = (packed.float() * scale).view(rows, columns)
    save_file(tensors, quantised / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    (quantised / "config.json").write_text(json.dumps(config))
    check(quantised, own, whole)
