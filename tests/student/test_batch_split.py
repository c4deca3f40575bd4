"""The loss is normalised by the positions of the global batch: any split of it gives the same gradient."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_kd.models import parts
from distributed_kd.student.objective import linear_distillation_loss
from distributed_kd.student.stream import to_micro_batch
from tests.commands import ROOT
from tests.student.split_worker import batch_rows

pytestmark = pytest.mark.slow
RATE = 0.1


def run(folder: Path, model: Path, world: int, micro_batch: int, stage: int) -> dict[str, Any]:
    out = folder / f"{world}-{micro_batch}-{stage}.pt"
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world), "--master-port", "0",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0",
            "-m", "tests.student.split_worker", str(out), str(micro_batch), str(stage), str(model),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        cwd=ROOT, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def exact(toy_student: Path) -> dict[str, Any]:
    """Loss and weights after one step of gradient descent, in one process, all eight rows at once, float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(toy_student).double()
    batch = to_micro_batch(batch_rows(), [0] * len(batch_rows()), 2.0)
    hidden = parts.body_of(model)(batch.input_ids, batch.position_ids)[batch.loss_mask]
    loss = linear_distillation_loss(
        hidden, parts.head_of(model), batch.targets, temperature=2.0, alpha=0.5, impl="reference"
    )
    mean = loss.total / len(batch.targets)
    mean.backward()
    weights = {name: value.detach() - RATE * value.grad for name, value in model.named_parameters()}
    return {"loss": mean.item(), "weights": weights}


@pytest.mark.parametrize(
    ("world", "micro_batch", "stage"), [(1, 8, 0), (2, 4, 1), (2, 1, 2), (4, 2, 1), (2, 2, 3), (4, 1, 3)]
)
def test_every_split_takes_the_same_step(
    exact: dict[str, Any], toy_student: Path, tmp_path: Path, world: int, micro_batch: int, stage: int
) -> None:
    found = run(tmp_path, toy_student, world, micro_batch, stage)
    assert found["loss"] == pytest.approx(exact["loss"], rel=1e-5)
    assert found["weights"].keys() == exact["weights"].keys()
    for name, expected in exact["weights"].items():
        torch.testing.assert_close(found["weights"][name].double(), expected, rtol=1e-4, atol=1e-6, msg=name)
