"""The loss is normalised by the positions of the global batch: any split of it gives the same gradient."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_kd.models import parts
from distributed_kd.recipe import Objective
from distributed_kd.student.objective import linear_distillation_loss
from distributed_kd.student.position_weights import PositionWeights
from distributed_kd.student.stream import to_micro_batch
from tests.commands import ROOT
from tests.student.split_worker import batch_rows

pytestmark = pytest.mark.slow
RATE = 0.1


FORM: dict[str, Any] = {"temperature": 2.0, "alpha": 0.5}
WEIGHTED = {**FORM, "confidence_exponent": 1.5, "entropy_share": 0.6}


def run(folder: Path, model: Path, world: int, micro_batch: int, stage: int, said: dict[str, Any]) -> dict[str, Any]:
    out = folder / f"{world}-{micro_batch}-{stage}.pt"
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world), "--master-port", "0",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0",
            "-m", "tests.student.split_worker", str(out), str(micro_batch), str(stage), str(model), json.dumps(said),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        cwd=ROOT, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def exact(toy_student: Path) -> Callable[[bool], dict[str, Any]]:
    """Of an objective the loss, and weights after one step of gradient descent, in one process and float64."""
    from transformers import AutoModelForCausalLM

    @cache
    def of(weighted: bool) -> dict[str, Any]:
        model = AutoModelForCausalLM.from_pretrained(toy_student).double()
        weighting = PositionWeights.of(Objective(**(WEIGHTED if weighted else FORM)))
        batch = to_micro_batch(batch_rows(), [0] * len(batch_rows()), 2.0, weighting)
        hidden = parts.body_of(model)(batch.input_ids, batch.position_ids)[batch.loss_mask]
        loss = linear_distillation_loss(hidden, parts.head_of(model), batch.targets, **FORM, impl="reference")
        mean = loss.total / batch.targets.total_weight
        mean.backward()
        weights = {name: value.detach() - RATE * value.grad for name, value in model.named_parameters()}
        return {"loss": mean.item(), "weights": weights}

    return of


@pytest.mark.parametrize(
    ("world", "micro_batch", "stage", "weighted"),
    [
        (1, 8, 0, False), (2, 1, 2, False), (4, 2, 1, False), (4, 1, 3, False), (2, 2, 3, True),
    ],
)  # fmt: skip
def test_every_split_takes_the_same_step(
    exact: Callable[[bool], dict[str, Any]], toy_student: Path, tmp_path: Path,
    world: int, micro_batch: int, stage: int, weighted: bool,
) -> None:  # fmt: skip
    wanted = exact(weighted)
    found = run(tmp_path, toy_student, world, micro_batch, stage, WEIGHTED if weighted else FORM)
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert found["weights"].keys() == wanted["weights"].keys()
    for name, expected in wanted["weights"].items():
        torch.testing.assert_close(found["weights"][name].double(), expected, rtol=1e-4, atol=1e-6, msg=name)


def test_a_gradient_beyond_the_norm_that_is_allowed_is_scaled_to_it(
    exact: Callable[[bool], dict[str, Any]], toy_student: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    before = dict(AutoModelForCausalLM.from_pretrained(toy_student).double().named_parameters())
    gradient = {name: (before[name] - weight).detach() / RATE for name, weight in exact(False)["weights"].items()}
    norm = math.sqrt(sum(float(one.square().sum()) for one in gradient.values()))
    found = run(tmp_path, toy_student, 2, 2, 2, FORM | {"gradient_clipping": norm / 4})["weights"]
    for name, one in gradient.items():
        step = (before[name] - found[name].double()).detach() / RATE
        torch.testing.assert_close(step, one / 4, rtol=1e-3, atol=1e-5, msg=name)
