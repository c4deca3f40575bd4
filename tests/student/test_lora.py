"""LoRA students under DeepSpeed: the base stays what it was to the bit, and exports are the model that was trained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_kd.recipe import parse
from distributed_kd.student.build import load_student
from tests.commands import ROOT, dkd, said, write_recipe

pytestmark = pytest.mark.slow

BUCKETS = {"stage": 2, "reduce_bucket_size": 1000}  # smaller than what is trained, and said by the user


def run(folder: Path, recipe: dict[str, Any], world: int, stage: int) -> dict[str, torch.Tensor]:
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world), "--master-port", "0",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0",
            "-m", "tests.student.lora_worker", str(folder), str(stage), json.dumps(recipe),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        cwd=ROOT, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return torch.load(folder / "live.pt", weights_only=True)


@pytest.mark.parametrize(("world", "zero"), [(1, {"stage": 0}), (2, {"stage": 1}), (2, {"stage": 3}), (2, BUCKETS)])
def test_adapters_alone_change_and_both_exports_are_the_live_model(
    toy_recipe: dict[str, Any], toy_student: Path, tmp_path: Path, world: int, zero: dict[str, int]
) -> None:
    """And have room for their gradients alone, where the user says nothing else."""
    from transformers import AutoModelForCausalLM

    toy_recipe["student"]["lora"] = {"rank": 4, "alpha": 8, "target_modules": "all-linear"}
    toy_recipe["trainer"] |= {
        "micro_batch": 2, "steps": 3, "warmup_fraction": 0.0, "deepspeed": {"zero_optimization": zero},
    }  # fmt: skip
    found = run(tmp_path, toy_recipe, world, zero["stage"])

    live = load_student(parse(toy_recipe), toy_student)
    before = {name: value.detach().clone() for name, value in live.named_parameters()}
    base = {name for name in before if ".lora_" not in name}
    trained = sum(value.numel() for name, value in before.items() if name not in base)
    assert int((tmp_path / "bucket").read_text()) == zero.get("reduce_bucket_size", trained)
    assert len(base) == len(AutoModelForCausalLM.from_pretrained(toy_student).state_dict()) - 1, "a tied head"
    for name, value in before.items():
        assert torch.equal(found[name], value) == (name in base), name

    live.load_state_dict(found, strict=False)
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        expected = live.eval()(input_ids=ids).logits
        adapter = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(input_ids=ids).logits
    assert torch.equal(adapter, expected)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_a_training_that_goes_on_ends_with_the_same_bits_and_is_evaluated(
    toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Two ranks under ZeRO-3, on layers of the teacher, with dropout; then the same merged, by one rank."""
    from transformers import AutoModelForCausalLM

    toy_recipe["baseline"] = "off"
    toy_recipe["student"] = {
        "init": "teacher_layers", "layers": 2, "lora": {"rank": 4, "alpha": 8, "dropout": 0.2},
    }  # fmt: skip
    toy_recipe["trainer"] |= {
        "processes": 2, "micro_batch": 2, "steps": 8, "checkpoint_every": 5,
        "deepspeed": {"zero_optimization": {"stage": 3}},
    }  # fmt: skip
    recipe = write_recipe(tmp_path, toy_recipe)
    for stage in ("prepare", "cache", "train"):
        done = dkd(stage, recipe)
        assert done.returncode == 0, done.stderr
    student = Path(toy_recipe["workdir"]) / "student"
    weights = student / "export" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    lines = (student / "metrics.jsonl").read_text().splitlines()
    (student / "manifest.json").unlink()  # it has not ended then, and its newest checkpoint is that of step 5
    weights.unlink()

    done = dkd("train", recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert weights.read_bytes() == whole
    assert (student / "metrics.jsonl").read_text().splitlines()[:5] == lines[:5]
    arm = json.loads(done.stdout)["student"]
    assert arm["trained_parameters"] < arm["parameters"] / 5
    done = dkd("evaluate", recipe, "--json")
    assert done.returncode == 0, done.stderr
    adapter = json.loads(done.stdout)["models"]["student"]

    merged = tmp_path / "merged"
    shutil.copytree(toy_recipe["workdir"], merged, ignore=shutil.ignore_patterns("student", "report"))
    shutil.copytree(student / "init", merged / "student" / "init")
    done = dkd(
        "run", recipe, f"workdir={merged}", "student.lora.merge=true", "student.lora.dropout=0", "--json",
        "trainer.processes=1", "trainer.deepspeed.zero_optimization.stage=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"]["student"]["parameters"] == adapter["parameters"]
    plain = AutoModelForCausalLM.from_pretrained(merged / "student" / "export")
    assert not any("lora" in name for name, _ in plain.named_parameters())
    done = dkd("train", recipe, f"workdir={merged}", "student.lora.target_modules=[nope]")
    assert done.returncode == 2 and "student.lora" in said(done)
