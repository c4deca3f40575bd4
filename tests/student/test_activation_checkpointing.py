"""Activations that are computed again give the same weights, bit for bit, and are in fact computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_kd.models import parts
from distributed_kd.recipe import parse
from distributed_kd.student.build import load_student
from tests.commands import dkd, write_recipe


def test_a_layer_runs_again_in_the_backward_pass(toy_recipe: dict[str, Any], toy_student: Path) -> None:
    runs = []
    for said in (False, True):
        toy_recipe["trainer"]["activation_checkpointing"] = said
        model = load_student(parse(toy_recipe), toy_student)
        count = [0]
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        ids = torch.arange(8)[None]
        parts.body_of(model)(ids, ids).sum().backward()
        runs.append(count[0])
    assert runs == [1, 2]


@pytest.mark.slow
@pytest.mark.long
def test_the_weights_are_the_same(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    toy_recipe["baseline"] = "off"
    toy_recipe["student"]["freeze"] = ["embeddings", "layers.0"]
    recipe = write_recipe(tmp_path, toy_recipe)
    for stage in ("prepare", "cache", "train"):
        assert dkd(stage, recipe).returncode == 0
    weights = Path(toy_recipe["workdir"]) / "student" / "export" / "model.safetensors"
    plain = weights.read_bytes()
    (weights.parent.parent / "manifest.json").unlink()
    weights.unlink()
    done = dkd("train", recipe, "trainer.activation_checkpointing=true")
    assert done.returncode == 0, done.stderr
    assert weights.read_bytes() == plain
