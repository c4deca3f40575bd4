"""Each ZeRO stage exports the live model, and takes offload to the host's memory for the same losses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks import Ranks
from tests.student.live_logits import IDS, LOGITS, work

pytestmark = pytest.mark.slow

CPU = {"device": "cpu"}
OFFLOAD: dict[int, dict[str, Any]] = {
    1: {"offload_optimizer": CPU}, 2: {"offload_optimizer": CPU}, 3: {"offload_optimizer": CPU, "offload_param": CPU},
}  # fmt: skip


def recipe_of(prepared: dict[str, Any], workdir: Path, **trainer: Any) -> dict[str, Any]:
    shutil.copytree(prepared["workdir"], workdir)
    return prepared | {"workdir": str(workdir), "trainer": prepared["trainer"] | {"micro_batch": 2} | trainer}


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (workdir / "student" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_export_is_the_live_model_and_offload_changes_no_loss(
    prepared_recipe: dict[str, Any], tmp_path: Path, stage: int
) -> None:
    from transformers import AutoModelForCausalLM

    plain = {"zero_optimization": {"stage": stage}}
    recipe = recipe_of(prepared_recipe, tmp_path / "plain", deepspeed=plain)
    Ranks(recipe, tmp_path / "run", 2, work=work).wait()
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "plain" / "student" / "export")
    with torch.no_grad():
        found = exported(input_ids=torch.from_numpy(IDS)).logits.numpy()
    np.testing.assert_allclose(found, np.load(tmp_path / "run" / LOGITS), rtol=0.0, atol=1e-6)
    assert losses(tmp_path / "plain")[-1] < losses(tmp_path / "plain")[0], "nothing was learnt"

    if stage in OFFLOAD:
        said = {"zero_optimization": {"stage": stage, **OFFLOAD[stage]}}
        Ranks(recipe_of(prepared_recipe, tmp_path / "offload", deepspeed=said), tmp_path / "offloaded", 2).wait()
        assert losses(tmp_path / "offload") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_a_precision_that_the_device_lacks_is_refused(prepared_recipe: dict[str, Any], tmp_path: Path) -> None:
    """Where a processor has float16, it trains in it."""
    import deepspeed

    recipe = recipe_of(prepared_recipe, tmp_path / "work", precision="float16")
    ranks = Ranks(recipe, tmp_path / "run", 1)
    for process in ranks.processes:
        process.join(200)
    if deepspeed.get_accelerator().is_fp16_supported():
        assert [process.exitcode for process in ranks.processes] == [0], ranks.said()
        return
    assert [process.exitcode for process in ranks.processes] == [2], ranks.said()
    line = "dkd: trainer.precision float16: the cpu here does not compute in it; choose float32 or bfloat16"
    assert line in ranks.said().splitlines()


@pytest.mark.long
def test_compiled_layers_train_alike_in_an_engine(prepared_recipe: dict[str, Any], tmp_path: Path) -> None:
    for name, compiled in (("plain", False), ("compiled", True)):
        Ranks(recipe_of(prepared_recipe, tmp_path / name, compile=compiled), tmp_path / f"run-{name}", 2).wait()
    found, plain = losses(tmp_path / "compiled"), losses(tmp_path / "plain")
    assert found == pytest.approx(plain, rel=1e-4)
