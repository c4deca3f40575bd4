"""A student of the teacher's layers, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from distributed_kd.errors import RequestError
from distributed_kd.models import parts
from distributed_kd.models.tokenizer import inputs_sha256, load_tokenizer
from distributed_kd.recipe import parse
from distributed_kd.student.build import load_student, student_folder, write_initial_weights
from tests import toys


@pytest.fixture
def recipe(toy_recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "bert").mkdir()
    bert = toys.save_masked_model(tmp_path / "bert", layers=3, seed=1)
    toy_recipe["teachers"] = [{"model": str(bert), "dtype": "float32"}]
    toy_recipe["corpus"] |= {"task": "masked_lm", "packing": "none"}
    toy_recipe["student"] = {"init": "teacher_layers", "layers": 2}
    return toy_recipe


def test_a_bert_and_a_distilbert_of_the_same_layers_compute_the_same(recipe: dict[str, Any], tmp_path: Path) -> None:
    logits = {}
    for architecture in (None, "distilbert"):
        recipe["student"]["architecture"] = architecture
        recipe["workdir"] = str(tmp_path / str(architecture))
        student = load_student(parse(recipe), student_folder(parse(recipe))).eval()
        with torch.no_grad():
            logits[type(student).__name__] = student(input_ids=torch.arange(24).reshape(2, 12)).logits
    torch.testing.assert_close(logits["DistilBertForMaskedLM"], logits["BertForMaskedLM"], atol=6e-6, rtol=0.0)


def test_initial_weights_of_another_architecture_are_refused(recipe: dict[str, Any]) -> None:
    write_initial_weights(parse(recipe))
    recipe["student"]["architecture"] = "distilbert"
    with pytest.raises(RequestError, match=r"was made for another student .architecture: nothing, not .distilbert."):
        write_initial_weights(parse(recipe))


def test_an_encoder_without_a_head_gets_one(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    encoder = toys.save_masked_model(tmp_path / "encoder", layers=2, seed=2, kind="BertModel")
    recipe["student"] = {"model": str(encoder)}
    recipe["trainer"]["seed"] = 3
    heads = []
    for arm in ("one", "two"):
        recipe["workdir"] = str(tmp_path / arm)
        folder = student_folder(parse(recipe))
        student = load_student(parse(recipe), folder)
        assert type(student).__name__ == "BertForMaskedLM"
        for name, tensor in load_file(encoder / "model.safetensors").items():
            assert "pooler" in name or torch.equal(student.bert.state_dict()[name], tensor), name
        heads.append(student.cls.predictions.transform.dense.weight)
    assert torch.equal(*heads) and heads[0].std() > 0
    assert load_tokenizer(folder).mask_token_id == 4
    recipe["trainer"]["seed"] = 4
    with pytest.raises(RequestError, match=r"was made for another student .seed: 3, not 4"):
        student_folder(parse(recipe))
    recipe["student"]["lora"] = {"rank": 4, "alpha": 8}
    with pytest.raises(RequestError, match=r"has no head for corpus\.task: masked_lm, and adapters would leave"):
        student_folder(parse(recipe))


def test_a_masked_language_model_becomes_a_classifier(recipe: dict[str, Any], tmp_path: Path) -> None:
    masked = recipe["teachers"][0]["model"]
    recipe["student"] = {"model": masked, "classes": 3}
    recipe["corpus"] |= {"task": "classification", "views": 1}
    student = load_student(parse(recipe), student_folder(parse(recipe)))
    assert type(student).__name__ == "BertForSequenceClassification" and student.num_labels == 3
    for name, tensor in load_file(Path(masked) / "model.safetensors").items():
        if name.startswith("bert."):
            assert torch.equal(student.state_dict()[name], tensor), name


def test_a_folder_that_has_its_head_is_the_students(recipe: dict[str, Any], toy_student: Path) -> None:
    for model, task in ((recipe["teachers"][0]["model"], "masked_lm"), (str(toy_student), "causal_lm")):
        recipe["student"] = {"model": model}
        recipe["corpus"]["task"] = task
        assert student_folder(parse(recipe)) == Path(model)


def test_a_configuration_and_a_tokenizer_in_a_folder_are_a_student_of_fresh_weights(
    toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    toys.llama_config(3, tie_word_embeddings=False).save_pretrained(tmp_path / "configured")
    toys.save_tokenizer(tmp_path / "configured")
    toy_recipe["student"] = {"model": str(tmp_path / "configured"), "init": "random"}
    found = []
    for seed in (3, 3, 4):
        toy_recipe["trainer"]["seed"] = seed
        model = load_student(parse(toy_recipe), student_folder(parse(toy_recipe)))
        assert model.config.num_hidden_layers == 3
        found.append(model.lm_head.weight)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert inputs_sha256(student_folder(parse(toy_recipe))) == inputs_sha256(Path(toy_recipe["teachers"][0]["model"]))


def test_a_distilbert_of_no_bert_is_refused(recipe: dict[str, Any], toy_teacher: Path) -> None:
    recipe["student"]["architecture"] = "distilbert"
    recipe["teachers"] = [{"model": str(toy_teacher)}]
    with pytest.raises(RequestError, match="is of the kind 'llama'"):
        write_initial_weights(parse(recipe))


STUDENTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "adapters": {"student": {"lora": {"rank": 4, "alpha": 8}}},
    "frozen": {"student": {"freeze": ["embeddings", "layers.0"]}},
    "fresh": {
        "corpus": {"task": "frames", "features_column": "frames"},
        "student": {
            "model": None, "init": "random",
            "config": {"model_type": "feature_classifier", "features": 3, "num_labels": 2, "hidden_sizes": [4]},
        },
    },
    "checkpointed": {"trainer": {"activation_checkpointing": True}},
}  # fmt: skip


def same_but_for_values(model: torch.nn.Module, whole: torch.nn.Module) -> None:
    kinds = [
        {name: (one.shape, one.dtype, one.requires_grad) for name, one in of.named_parameters()}
        for of in (model, whole)
    ]
    assert list(kinds[0].items()) == list(kinds[1].items()), "in their order, which ranks go by"
    buffers = dict(whole.named_buffers())
    assert [name for name, _ in model.named_buffers()] == list(buffers)
    assert all(torch.equal(one, buffers[name]) for name, one in model.named_buffers())


@pytest.mark.parametrize("changes", STUDENTS.values(), ids=STUDENTS)
def test_a_rank_that_is_not_the_first_has_the_same_student_but_for_its_values(
    toy_recipe: dict[str, Any], changes: dict[str, Any]
) -> None:
    recipe = parse(
        {key: said | changes.get(key, {}) if isinstance(said, dict) else said for key, said in toy_recipe.items()}
    )
    folder = student_folder(recipe)
    same_but_for_values(load_student(recipe, folder, is_first=False), load_student(recipe, folder))


def test_a_distilbert_of_a_rank_that_is_not_the_first(recipe: dict[str, Any]) -> None:
    recipe["student"]["architecture"] = "distilbert"
    own = parse(recipe)
    folder = student_folder(own)
    same_but_for_values(load_student(own, folder, is_first=False), load_student(own, folder))


def test_buffers_in_files_of_weights_are_read_by_each_rank(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    """A router's correction, of a mixture of experts: DeepSpeed sends the first rank's parameters and no buffers."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
        "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8, "vocab_size": toys.VOCABULARY,
        "max_position_embeddings": 64,
    }  # fmt: skip
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**sizes))
    names = [name for name, _ in model.named_buffers() if "correction" in name]
    assert names
    for name in names:
        model.get_buffer(name).fill_(0.25)
    model.save_pretrained(tmp_path / "experts")
    toys.save_tokenizer(tmp_path / "experts")
    toy_recipe["student"] = {"model": str(tmp_path / "experts")}
    found = load_student(parse(toy_recipe), tmp_path / "experts", is_first=False)
    assert all((found.get_buffer(name) == 0.25).all() for name in names)


def test_parameters_of_a_rank_that_is_not_the_first_take_no_memory(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    toys.llama_config(2, hidden_size=1024, intermediate_size=8192).save_pretrained(tmp_path / "large")
    toys.save_tokenizer(tmp_path / "large")
    toy_recipe["student"] = {"model": str(tmp_path / "large"), "init": "random"}
    recipe = parse(toy_recipe)
    here = psutil.Process()
    load_student(recipe, student_folder(recipe), is_first=False)  # what is imported
    before = here.memory_info().rss
    model = load_student(recipe, student_folder(recipe), is_first=False)
    taken, size = here.memory_info().rss - before, sum(one.nbytes for one in model.parameters())
    assert size > 100_000_000 and taken < 0.1 * size


@pytest.mark.slow
def test_compiled_layers_give_the_same_gradients_and_names(toy_recipe: dict[str, Any], toy_student: Path) -> None:
    found = []
    for said in (False, True):
        toy_recipe["trainer"] |= {"compile": said, "activation_checkpointing": said}
        model = load_student(parse(toy_recipe), toy_student)
        ids = torch.arange(16).reshape(2, 8)
        hidden = parts.body_of(model)(ids, torch.arange(8).expand(2, 8))
        (hidden * torch.linspace(-1.0, 2.0, hidden.numel()).reshape(hidden.shape)).sum().backward()
        found.append((hidden.detach(), {name: one.grad for name, one in model.named_parameters()}))
    (hidden, gradients), (compiled_hidden, compiled) = found
    torch.testing.assert_close(compiled_hidden, hidden, rtol=1e-4, atol=1e-5)
    assert compiled.keys() == gradients.keys()
    for name, own in gradients.items():
        if own is not None:
            torch.testing.assert_close(compiled[name], own, rtol=1e-3, atol=1e-4 * own.abs().max().item())


def test_a_model_without_layers_is_not_compiled(toy_recipe: dict[str, Any]) -> None:
    toy_recipe["corpus"] |= {"task": "frames", "features_column": "frames"}
    config = {"model_type": "feature_classifier", "features": 3, "num_labels": 2, "hidden_sizes": [4]}
    toy_recipe["student"] = {"init": "random", "config": config}
    toy_recipe["trainer"]["compile"] = True
    recipe = parse(toy_recipe)
    with pytest.raises(RequestError, match=r"trainer\.compile: FeatureClassifier has no layers to compile"):
        load_student(recipe, student_folder(recipe))
