"""The loss on development documents while training: the exported student's own, and nothing that training notices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_kd.corpus.prepare import prepare
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.errors import RequestError
from distributed_kd.recipe import parse
from distributed_kd.store.filesystem import Store
from distributed_kd.student.train import train
from distributed_kd.teacher.capture import capture
from tests.commands import dkd, write_recipe

pytestmark = pytest.mark.slow


def held_out_losses(work: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (work / "student" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line}


def test_it_is_the_students_own_and_leaves_the_weights_alone(captured_recipe: dict[str, Any], tmp_path: Path) -> None:
    """Two ranks under ZeRO-3, an odd number of sequences, at alpha = 1, whose loss reads no label; then one rank."""
    from transformers import AutoModelForCausalLM

    captured_recipe["objective"]["alpha"] = 1.0
    captured_recipe["trainer"] |= {
        "processes": 2, "steps": 6, "micro_batch": 2, "evaluate_every": 2, "evaluate_sequences": 5,
        "checkpoint_every": 1, "keep_checkpoints": 1, "deepspeed": {"zero_optimization": {"stage": 3}},
    }  # fmt: skip
    recipe = write_recipe(tmp_path, captured_recipe)
    runs = {name: tmp_path / name for name in ("looks", "does not", "alone")}
    said_by = {"looks": (), "does not": ("trainer.evaluate_every=0",), "alone": ("trainer.processes=1",)}
    for name, work in runs.items():
        shutil.copytree(captured_recipe["workdir"], work)
        done = dkd("train", recipe, f"workdir={work}", *said_by[name])
        assert done.returncode == 0, done.stderr
    found = held_out_losses(runs["looks"])
    assert list(found) == [1, 3, 5] and not held_out_losses(runs["does not"])
    assert list(held_out_losses(runs["alone"]).values()) == pytest.approx(list(found.values()), rel=1e-5)
    exports = [work / "student" / "export" / "model.safetensors" for work in runs.values()]
    assert exports[0].read_bytes() == exports[1].read_bytes()

    model = AutoModelForCausalLM.from_pretrained(runs["looks"] / "student" / "export").double()
    sequences = Sequences.open(Store(str(runs["looks"])))
    rows = [row for entry in sequences.shards("development") for row in sequences.read(entry.shard)][:5]
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(row.input_ids).long()[None]).logits[0]
        total += torch.nn.functional.cross_entropy(logits, torch.from_numpy(row.labels), reduction="sum")
    assert found[5] == pytest.approx(float(total) / sum(row.positions for row in rows), rel=1e-5)

    folder = runs["looks"] / "student" / "checkpoints"
    best = min((loss, step + 1) for step, loss in found.items() if step < 5)[1]
    assert json.loads((folder / "best.json").read_text()) == {"step": best}
    assert {path.stem for path in folder.glob("step-*.json")} == {f"step-{step:08d}" for step in (best, 5)}


def test_without_development_documents_it_is_refused(toy_recipe: dict[str, Any], ray_cluster: Any) -> None:
    toy_recipe["corpus"]["development_fraction"] = 0.0
    toy_recipe["trainer"]["evaluate_every"] = 1
    recipe = parse(toy_recipe)
    prepare(recipe)
    capture(recipe)
    with pytest.raises(RequestError, match="needs development sequences, and there are none"):
        train(recipe)
