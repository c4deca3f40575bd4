"""Adapters: where they may be, what is trained, and that every way to open them gives the model that was trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from distributed_kd.errors import RequestError
from distributed_kd.models import adapters, parts
from distributed_kd.models.load import load_model
from distributed_kd.recipe import Lora, parse
from distributed_kd.store.filesystem import Store
from distributed_kd.store.folder import as_local_folder, put_folder
from distributed_kd.student.build import INITIAL, base_name, empty_student, load_student, mark_trained
from distributed_kd.student.export import write_adapters
from tests import toys

IDS = torch.arange(2, 14)[None]


def lora(**changes: Any) -> Lora:
    return Lora(**({"rank": 4, "alpha": 8} | changes))


def recipe_of(data: dict[str, Any], **changes: Any) -> Any:
    data["student"]["lora"] = {"rank": 4, "alpha": 8, **changes}
    return parse(data)


def disturbed(model: Any) -> Any:
    """As if it had been trained: adapters do nothing at first."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def trained_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(
    ("target_modules", "of_a_layer"), [(None, ["q_proj", "v_proj"]), (["down_proj"], ["down_proj"]), ("all-linear", 7)]
)
def test_adapters_are_where_they_were_asked_for_and_alone_are_trained(
    toy_recipe: dict[str, Any], toy_student: Path, target_modules: Any, of_a_layer: Any
) -> None:
    model = load_student(recipe_of(toy_recipe, target_modules=target_modules), toy_student)
    trained = trained_of(model)
    assert trained and all(".lora_" in name for name in trained)
    places = {name.partition(".lora_")[0].split(".", 5)[-1] for name in trained}
    if isinstance(of_a_layer, int):
        assert len(places) == of_a_layer
    else:
        assert {place.rpartition(".")[2] for place in places} == set(of_a_layer)
    plain = load_model(toy_student, torch.float32, torch.device("cpu"))
    assert torch.equal(logits_of(model), logits_of(plain)), "adapters do nothing yet"
    again = trained_of(load_student(recipe_of(toy_recipe, target_modules=target_modules), toy_student))
    assert all(torch.equal(value, again[name]) for name, value in trained.items())


@pytest.mark.parametrize(
    ("target_modules", "said"),
    [
        (["nope"], r"target_modules \['nope'\]: Target modules .* not found in the base model"),
        (["q_proj", "nope"], "the student has no layer 'nope'"),
        (["mlp"], "name layers of it, or all-linear"),
        (["q_proj", "lm_head"], "LlamaForCausalLM: its head has an adapter, .*; leave it out of lora.target_modules"),
        (["embed_tokens"], "embeddings would get an adapter"),
    ],
)
def test_a_place_where_no_adapter_can_be_is_refused_before_weights_are_read(
    toy_recipe: dict[str, Any], toy_student: Path, target_modules: list[str], said: str
) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        mark_trained(empty_student(toy_student), recipe_of(toy_recipe, target_modules=target_modules))
    assert "\n" not in str(caught.value)


def test_without_peft_the_line_says_what_to_install(
    toy_recipe: dict[str, Any], toy_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RequestError, match=r"student\.lora needs peft.*pip install 'distributed-kd\[lora\]'"):
        mark_trained(empty_student(toy_student), recipe_of(toy_recipe))


@pytest.mark.parametrize("masked", [False, True])
def test_body_and_head_see_through_the_wrapper(toy_student: Path, tmp_path: Path, masked: bool) -> None:
    folder = toys.save_masked_model(tmp_path, layers=2, seed=1) if masked else toy_student
    model = load_model(folder, torch.float32, torch.device("cpu"))
    before = logits_of(model)
    model = disturbed(adapters.add_adapters(model, lora(target_modules="all-linear"), seed=0))
    parts.check(model)
    with torch.no_grad():
        ours = parts.head_of(model).logits(parts.body_of(model)(IDS, torch.arange(IDS.shape[1])[None]))
    torch.testing.assert_close(ours, logits_of(model), rtol=1e-4, atol=1e-5)
    assert (ours - before).abs().max() > 0.01


def test_every_way_to_open_an_export_gives_the_live_models_logits(
    toy_recipe: dict[str, Any], toy_student: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = recipe_of(toy_recipe, target_modules="all-linear")
    live = disturbed(load_student(recipe, toy_student))
    expected = logits_of(live)
    folder, merged = tmp_path / "adapter", tmp_path / "merged"
    write_adapters(recipe, live, trained_of(live), toy_student, folder)
    write_adapters(
        recipe_of(toy_recipe, target_modules="all-linear", merge=True), live, trained_of(live), toy_student, merged
    )

    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(toy_student.resolve())
    assert config["target_modules"] == sorted(config["target_modules"])
    base = AutoModelForCausalLM.from_pretrained(toy_student)
    assert torch.equal(logits_of(PeftModel.from_pretrained(base, folder)), expected)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(folder)), expected)

    plain = AutoModelForCausalLM.from_pretrained(merged)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    torch.testing.assert_close(logits_of(plain), expected, rtol=1e-4, atol=1e-5)
    ours = load_model(folder, torch.float32, torch.device("cpu"))
    assert torch.equal(logits_of(ours), logits_of(plain)), "what is evaluated is the merged model"
    for exported in (folder, merged):
        assert len(AutoTokenizer.from_pretrained(exported)) == toys.VOCABULARY


def test_layers_of_the_teacher_in_a_bucket_are_a_base(toy_recipe: dict[str, Any], toy_student: Path) -> None:
    workdir = Store("memory://adapters/work")
    toy_recipe |= {"workdir": workdir.uri, "student": {"init": "teacher_layers", "layers": 2}}
    recipe = recipe_of(toy_recipe)
    put_folder(toy_student, workdir, INITIAL)
    live = disturbed(load_student(recipe, toy_student))
    with TemporaryDirectory() as folder:
        write_adapters(recipe, live, trained_of(live), toy_student, Path(folder))
        put_folder(Path(folder), workdir, "student/export")
    exported = load_model(as_local_folder(workdir, "student/export"), torch.float32, torch.device("cpu"))
    torch.testing.assert_close(logits_of(exported), logits_of(live), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("student", "called"),
    [
        ({"model": "owner/name"}, "owner/name"),
        ({"model": "here/model"}, "FOLDER"),
        ({"init": "teacher_layers", "layers": 2}, "FOLDER"),
    ],
)
def test_a_base_is_called_by_what_finds_it_from_anywhere(
    toy_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: dict[str, Any], called: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "here" / "model"
    folder.mkdir(parents=True)
    toy_recipe["student"] = student
    assert base_name(parse(toy_recipe), Path("here/model")) == called.replace("FOLDER", str(folder))


def test_an_adapter_whose_base_is_gone_says_so(toy_recipe: dict[str, Any], toy_student: Path, tmp_path: Path) -> None:
    recipe = recipe_of(toy_recipe)
    live = load_student(recipe, toy_student)
    write_adapters(recipe, live, trained_of(live), toy_student, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/base"}))
    with pytest.raises(RequestError, match="holds an adapter, whose base cannot be had: model /gone/base"):
        load_model(tmp_path, torch.float32, torch.device("cpu"))
