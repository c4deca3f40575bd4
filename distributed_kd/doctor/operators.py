"""Whether DeepSpeed's operators compile: what its optimizer for offload is made of, on this machine's own compiler.

Of its other operators the ranks of a training without a GPU load one, which the check of ranks compiles.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Literal

from distributed_kd.doctor.finding import Finding
from distributed_kd.doctor.machine import COMPILER
from distributed_kd.launch.processors import set_processors
from distributed_kd.recipe import Recipe
from distributed_kd.student.engine import deepspeed_config

_SECONDS = 600
_SCRIPT = "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load(verbose=False)"


def operators(recipe: Recipe | None) -> Finding:
    """Compiles the optimizer that a recipe offloads to; without a recipe too, where one that offloads may follow."""
    if recipe is not None and not _offloads(recipe):
        return Finding("operators", "ok", "none is needed: the recipe does not offload to DeepSpeed's optimizer")
    environment = dict(os.environ)
    set_processors(environment, 1)
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, timeout=_SECONDS
    )
    if done.returncode == 0:
        return Finding("operators", "ok", "DeepSpeed's optimizer for offload compiles")
    last = next((line for line in reversed(done.stderr.splitlines()) if "rror" in line), "no reason was given")
    fix = f"{COMPILER}, or set trainer.deepspeed.optimizer.params.torch_adam=true where the optimizer is offloaded"
    state: Literal["warning", "missing"] = "warning" if recipe is None else "missing"
    return Finding("operators", state, f"DeepSpeed's optimizer for offload does not compile: {last.strip()[:200]}", fix)


def _offloads(recipe: Recipe) -> bool:
    config = deepspeed_config(recipe.trainer, 1)
    to = config["zero_optimization"].get("offload_optimizer", {}).get("device", "none")
    return to != "none" and not config["optimizer"]["params"].get("torch_adam")
