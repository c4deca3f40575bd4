"""Body and head apart give what the model itself gives, or the model is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed_kd.errors import RequestError
from distributed_kd.models import parts
from distributed_kd.models.load import resolve_dtype
from distributed_kd.models.locate import identity, locate
from distributed_kd.models.tokenizer import load_tokenizer, tokenizer_sha256
from tests import toys

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def families() -> dict[str, Any]:
    import transformers as t

    return {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "gemma2 (soft-cap)": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**SMALL, final_logit_softcapping=2.0)),
        "granite (scaled)": lambda: t.GraniteForCausalLM(t.GraniteConfig(**SMALL, logits_scaling=8.0)),
        "cohere (scaled)": lambda: t.CohereForCausalLM(t.CohereConfig(**SMALL, logit_scale=0.25)),
        "phi (biased)": lambda: t.PhiForCausalLM(t.PhiConfig(**{**SMALL, "num_key_value_heads": 4})),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SMALL)),
        **masked_families(),
    }


def masked_families() -> dict[str, Any]:
    import transformers as t

    small = {key: value for key, value in SMALL.items() if key not in ("num_key_value_heads", "head_dim")}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    return {
        "bert": lambda: t.BertForMaskedLM(t.BertConfig(**small)),
        "roberta": lambda: t.RobertaForMaskedLM(t.RobertaConfig(**small)),
        "distilbert": lambda: t.DistilBertForMaskedLM(
            t.DistilBertConfig(vocab_size=50, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64)
        ),
        "modernbert": lambda: t.ModernBertForMaskedLM(t.ModernBertConfig(**small, **tokens)),
    }


@pytest.mark.parametrize("family", families())
def test_heads_of_many_families_are_understood(family: str) -> None:
    torch.manual_seed(0)
    model = families()[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    parts.check(model)


@pytest.mark.parametrize("family", families())
def test_a_models_own_forward_gives_the_bodys_hidden_states(family: str) -> None:
    """And their gradient passes through what it gives out, to which wrappers attach their hooks."""
    torch.manual_seed(0)
    model = families()[family]().eval()
    ids, places, present = torch.arange(5, 19)[None], torch.arange(14)[None], torch.arange(14)[None] < 10
    out: list[Any] = []
    model.register_forward_hook(lambda module, given, output: output.logits.register_hook(out.append) and None)
    hidden = parts.hidden_states(model, ids, places, present.long())
    torch.testing.assert_close(hidden, parts.body_of(model)(ids, places, present), rtol=0.0, atol=0.0)
    hidden.sum().backward()
    assert len(out) == 1


@pytest.mark.parametrize("family", masked_families())
def test_a_masked_model_sees_both_sides_and_no_padding(family: str) -> None:
    torch.manual_seed(0)
    model = masked_families()[family]().eval()
    body, head = parts.body_of(model), parts.head_of(model)
    ids = torch.arange(5, 15)[None]
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    places = torch.arange(14)[None]
    with torch.no_grad():
        own = model(input_ids=ids).logits
        ours = head.logits(body(padded, places, places < 10))[:, :10]
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)
        later = padded.clone()
        later[0, 9] = 40
        assert not torch.equal(head.logits(body(later, places, places < 10))[:, 0], ours[:, 0])
        torch.testing.assert_close(model(input_ids=ids).logits, own, rtol=0.0, atol=0.0)  # it is as it was


def test_a_head_that_does_more_is_refused() -> None:
    model = families()["llama"]().eval()
    own = model.forward
    model.forward = lambda **arguments: _scaled(own(**arguments))
    with pytest.raises(RequestError, match="LlamaForCausalLM: its head does more than this understands"):
        parts.check(model)


def _scaled(output: Any) -> Any:
    output.logits = output.logits * 1.01 + 0.01
    return output


@pytest.mark.parametrize("family", sorted(families().keys() - masked_families().keys()))
def test_isolated_documents_do_not_see_each_other(family: str) -> None:
    """Position ids that restart give each document the hidden states it has alone, in a padded batch too."""
    torch.manual_seed(0)
    body = parts.body_of(families()[family]().eval())
    first, second = torch.arange(2, 9), torch.arange(30, 35)
    together = torch.zeros(2, 14, dtype=torch.long)
    together[0, :12] = torch.cat([first, second])
    together[1] = torch.arange(14)
    position_ids = torch.arange(14).repeat(2, 1)
    position_ids[0, 7:] -= 7
    with torch.no_grad():
        packed = body(together, position_ids)[0]
        for ids, place in ((first, slice(0, 7)), (second, slice(7, 12))):
            alone = body(ids[None], torch.arange(len(ids))[None])[0]
            torch.testing.assert_close(packed[place], alone, rtol=1e-4, atol=1e-5)


def test_auto_is_float32_where_the_processor_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert resolve_dtype("auto", CPU) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve_dtype("auto", CPU) == torch.bfloat16


def test_identity_follows_the_weights_and_not_the_folder(toy_teacher: Path, toy_student: Path, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(toy_teacher, moved)
    assert identity(moved) == identity(toy_teacher)
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert identity(moved) != identity(toy_teacher)
    assert identity(toy_student) != identity(toy_teacher)


def test_tokenizers_are_told_apart_by_what_they_do(toy_teacher: Path, toy_student: Path, tmp_path: Path) -> None:
    own = tokenizer_sha256(load_tokenizer(toy_teacher))
    assert tokenizer_sha256(load_tokenizer(toy_student)) == own
    padded = load_tokenizer(toy_teacher)
    padded.pad_token = padded.eos_token
    padded(["w1 w2", "w3"], padding=True, truncation=True, max_length=1)
    assert tokenizer_sha256(padded) == own
    toys.save_tokenizer(tmp_path, [*toys.WORDS[1:], toys.WORDS[0]])
    assert tokenizer_sha256(load_tokenizer(tmp_path)) != own


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("./nowhere", "there is no such folder"),
        ("nowhere", "there is no such folder"),
        ("package:no_such_package", "the package no_such_package is not installed"),
        ("somebody/some-model", "neither a local folder nor to be had from the hub"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(reference: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        locate(reference)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no config\.json"):
        locate(str(tmp_path))


def test_head_arithmetic() -> None:
    hidden, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    found = parts.Head(weight, bias, scale=0.5, softcap=2.0).logits(hidden).numpy()
    expected = 2.0 * np.tanh(0.5 * (hidden.numpy() @ weight.numpy().T + bias.numpy()) / 2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
