"""The DeepSpeed configuration: ours, the user's merged over it, what both say refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.errors import RequestError
from distributed_kd.launch.hostfile import slots
from distributed_kd.recipe import Trainer
from distributed_kd.student import engine
from distributed_kd.student.build import which_layers
from distributed_kd.student.engine import deepspeed_config, learning_rate_schedule, zero_stage
from tests.commands import ROOT


def trainer(**changes: Any) -> Trainer:
    return Trainer(**({"steps": 1, "global_batch": 16, "micro_batch": 2} | changes))


def test_accumulation_follows_from_batches_and_ranks() -> None:
    config = deepspeed_config(trainer(), world=4)
    assert config["gradient_accumulation_steps"] == 2
    assert zero_stage(config) == 1


def test_the_users_json_is_merged_and_auto_is_left_to_us(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        json.dumps(
            {
                "train_batch_size": "auto",
                "bf16": {"enabled": "auto"},
                "zero_optimization": {"stage": 2, "reduce_bucket_size": 5},
                "optimizer": {"params": {"betas": [0.9, 0.95]}},
            }
        )
    )
    config = deepspeed_config(trainer(deepspeed=str(path)), world=1)
    assert config["train_batch_size"] == 16
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 5}
    assert config["optimizer"]["params"]["betas"] == [0.9, 0.95]
    assert config["optimizer"]["params"]["lr"] == trainer().learning_rate


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("train_batch_size", 3), ("train_micro_batch_size_per_gpu", 3), ("gradient_accumulation_steps", 3),
        ("gradient_clipping", 0.0), ("scheduler", {"type": "WarmupLR"}), ("optimizer.params.lr", 0.0),
        ("optimizer.params.weight_decay", 0.0),
        *((name, {"enabled": False}) for name in ("bf16", "bfloat16", "fp16", "amp", "torch_autocast")),
    ],
)  # fmt: skip
def test_what_the_recipe_says_already_is_refused_wherever_it_is_said(key: str, said: Any, tmp_path: Path) -> None:
    given = said
    for part in reversed(key.split(".")):
        given = {part: given}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(given))
    own = engine._OURS[key].split(" and ")[0].removeprefix("trainer.")
    assert own in Trainer.model_fields
    for deepspeed in (given, str(path)):
        with pytest.raises(RequestError, match=f"trainer.deepspeed says {key}; say it as trainer.{own}"):
            deepspeed_config(trainer(deepspeed=deepspeed), world=1)


def test_every_key_that_is_ours_is_tried_above() -> None:
    (parametrised,) = test_what_the_recipe_says_already_is_refused_wherever_it_is_said.pytestmark
    assert {key for key, _ in parametrised.args[1]} == engine._OURS.keys()


def test_another_optimizer_is_refused_by_its_name() -> None:
    for name in ("Lamb", "Adam"):
        with pytest.raises(RequestError, match=f"says optimizer.type {name}; students are trained by AdamW"):
            deepspeed_config(trainer(deepspeed={"optimizer": {"type": name, "params": {"betas": [0.9, 0.95]}}}), 1)
    deepspeed_config(trainer(deepspeed={"optimizer": {"type": "AdamW"}}), 1)


def test_compiled_layers_do_not_gather_weights() -> None:
    zero = {"zero_optimization": {"stage": 3}}
    with pytest.raises(RequestError, match=r"trainer\.compile does not go with ZeRO stage 3"):
        deepspeed_config(trainer(compile=True, deepspeed=zero), 1)
    assert zero_stage(deepspeed_config(trainer(compile=True), 1)) == 1


@pytest.mark.parametrize("text", ["{", None])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ds.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RequestError, match=r"ds\.json is not a JSON file"):
        deepspeed_config(trainer(deepspeed=str(path)), world=1)


DEEPSPEED = ROOT / "infra" / "deepspeed"


@pytest.mark.parametrize("file", sorted(DEEPSPEED.glob("*.json")), ids=lambda file: file.stem)
def test_a_configuration_that_comes_with_the_project_is_what_its_name_says(file: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    config = deepspeed_config(trainer(deepspeed=str(file), gradient_clipping=1.0), world=1)
    found = DeepSpeedConfig(config).zero_config
    stage, _, offload = file.stem.removeprefix("zero").partition("-")
    assert found.stage == zero_stage(config) == int(stage)
    assert (found.offload_optimizer is not None) == bool(offload)
    assert (found.offload_param is not None) == (file.stem == "zero3-offload")


def test_there_is_a_configuration_for_each_stage_and_offload() -> None:
    named = {file.stem for file in DEEPSPEED.glob("*.json")}
    assert named == {"zero0", "zero1", "zero2", "zero2-offload", "zero3", "zero3-offload"}


def test_deepspeed_and_we_read_the_hostfile_alike() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    assert dict(fetch_hostfile(str(DEEPSPEED / "hostfile"))) == slots(str(DEEPSPEED / "hostfile"))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.0, 5: 0.5, 10: 1.0, 50: 1.0, 99: 1.0}),
        ("linear", {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 99: 1 / 90, 100: 0.0}),
        ("cosine", {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 100: 0.0}),
        ("wsd", {0: 0.0, 5: 0.5, 10: 1.0, 45: 1.0, 79: 1.0, 80: 1.0, 90: 0.5, 99: 0.05, 100: 0.0}),
    ],
)
def test_the_learning_rate_is_the_schedules_at_its_edges(schedule: str, expected: dict[int, float]) -> None:
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    found = learning_rate_schedule(trainer(schedule=schedule, warmup_fraction=0.1), optimizer, steps=100)
    rates = {}
    for step in range(101):
        rates[step] = found.get_last_lr()[0]
        optimizer.step()
        found.step()
    assert {step: rates[step] for step in expected} == pytest.approx(expected, abs=1e-12)


def test_layers_evenly_spread_have_the_first_and_the_last() -> None:
    assert which_layers(3, of=9) == [0, 4, 8]
    assert which_layers([0, 1, 7], of=9) == [0, 1, 7]
    for wrong in ([], [9], [1, 0], [1, 1], 10):
        with pytest.raises(RequestError, match="the teacher has 9 layers"):
            which_layers(wrong, of=9)
