"""A training that goes on with another number of ranks meets the same batches and has the same losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import dkd, write_recipe

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("stage", "before", "after"),
    [
        pytest.param(0, 2, 1, marks=pytest.mark.long), pytest.param(1, 2, 1, marks=pytest.mark.long),
        pytest.param(2, 1, 2, marks=pytest.mark.long),
        (3, 2, 1), pytest.param(3, 1, 2, marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_a_checkpoint_is_gone_on_from_by_another_number_of_ranks(
    toy_recipe: dict[str, Any], tmp_path: Path, stage: int, before: int, after: int
) -> None:
    toy_recipe["baseline"] = "off"
    toy_recipe["student"]["freeze"] = ["layers.0"]
    toy_recipe["trainer"] |= {
        "steps": 8, "checkpoint_every": 5, "processes": before, "micro_batch": 2,
        "deepspeed": {"zero_optimization": {"stage": stage}},
    }  # fmt: skip
    recipe = write_recipe(tmp_path, toy_recipe)
    for command in ("prepare", "cache", "train"):
        done = dkd(command, recipe)
        assert done.returncode == 0, done.stderr
    student = Path(toy_recipe["workdir"]) / "student"
    whole, weights = losses(student), load_file(student / "export" / "model.safetensors")
    (student / "manifest.json").unlink()  # it has not ended then, and its newest checkpoint is that of step 5

    done = dkd("train", recipe, f"trainer.processes={after}")
    assert done.returncode == 0, done.stderr
    assert losses(student)[:5] == whole[:5]
    assert losses(student)[5:] == pytest.approx(whole[5:], rel=1e-5)
    for name, tensor in load_file(student / "export" / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4)
    assert (student / "checkpoints" / "step-00000005.universal").exists() == (stage > 0)


def losses(student: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (student / "metrics.jsonl").read_text().splitlines()]
