"""A whole training step with cached targets, beside hard labels alone and beside a teacher in the step.

    python benchmarks/training.py RECIPE [KEY=VALUE ...] [--json]      after `dkd cache RECIPE`

Every way takes the same batches of the recipe's cache through the recipe's student and DeepSpeed engine on one rank, a
step of each in turns; a step is waiting for the batch, forward, backward and optimizer:
    hard labels   alpha 0, the same stream
    cached        the recipe's objective
    online        the teacher's forward in the step, its top-k chosen there, the recipe's objective
    online, dense the teacher's forward in the step, KL over the whole vocabulary on full logits
`time_ratio` is the median over rounds against hard labels; `memory_ratio` is of the peak of a process of its own that
takes two steps, with everything in it: on a GPU of the device's memory, else of the process's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from process_memory import memory
from torch import Tensor

from distributed_kd.corpus.sequences import Sequences
from distributed_kd.models import parts
from distributed_kd.recipe import Recipe, load
from distributed_kd.student.build import load_student, student_folder
from distributed_kd.student.engine import deepspeed_config, start_engine, zero_stage
from distributed_kd.student.loop import take_step
from distributed_kd.student.model import DistillationModel
from distributed_kd.student.objective import Loss
from distributed_kd.student.position_targets import PositionTargets
from distributed_kd.student.stream import MicroBatch
from distributed_kd.student.worker import open_rows, open_stream
from distributed_kd.teacher.network import Network
from distributed_kd.teacher.targets import DeviceTargets, choose

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
F = torch.nn.functional
HARD, CACHED, ONLINE, DENSE = "hard labels", "cached", "online", "online, dense"
WAYS = (HARD, CACHED, ONLINE, DENSE)


class Trainee:
    """The recipe's student in its engine, and its stream; the teacher only where a way asks for it."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        self.recipe = recipe
        trainer = recipe.trainer
        stream = open_stream(recipe, open_rows(recipe), Sequences.of(recipe), rank=0, world=1)
        self.batches = stream.steps(0, steps)
        config = deepspeed_config(trainer, 1)
        model = load_student(recipe, student_folder(recipe))
        self.engine = start_engine(
            DistillationModel(model, recipe.objective, zero_stage(config)), trainer, config, steps
        )
        self._forward = self.engine.module.forward

    @cached_property
    def teacher(self) -> Network:
        return Network(self.recipe.teachers[0], self.recipe.capture)

    def step(self, way: str) -> float:
        """Seconds."""
        module, objective = self.engine.module, self.recipe.objective
        module.objective = objective.model_copy(update={"alpha": 0.0}) if way == HARD else objective
        module.forward = self._dense if way == DENSE else self._online if way == ONLINE else self._forward
        _wait()
        begun = time.perf_counter()
        take_step(self.engine, next(self.batches))
        _wait()
        return time.perf_counter() - begun

    def _online(self, batch: MicroBatch, scale: float) -> Tensor:
        temperature = self.recipe.objective.temperature
        with torch.inference_mode():
            chosen = [choose(chunk, self.recipe.targets) for chunk in self._teacher_logits(batch)]
        found = [_position_targets(chunk, temperature) for chunk in chosen]
        targets = PositionTargets(batch.targets.labels, *(torch.cat(each) for each in zip(*found, strict=True)))
        return self._forward(replace(batch, targets=targets), scale)

    def _dense(self, batch: MicroBatch, scale: float) -> Tensor:
        module, objective = self.engine.module, self.recipe.objective
        alpha, temperature = objective.alpha, objective.temperature
        teacher = torch.cat(list(self._teacher_logits(batch)))
        hidden = parts.body_of(module.model)(batch.input_ids, batch.position_ids, batch.present)[batch.loss_mask]
        logits = F.linear(hidden, parts.head_of(module.model).weight).float()
        hard = F.cross_entropy(logits, batch.targets.labels, reduction="sum")
        log_q, log_p = (each.div(temperature).log_softmax(dim=1) for each in (logits, teacher))
        soft = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
        total = (1.0 - alpha) * hard + alpha * temperature**2 * soft
        module.last_loss = Loss(
            total.detach(), hard.detach(), soft.detach(), torch.zeros_like(soft), torch.full_like(soft, torch.nan)
        )
        return total * scale

    def _teacher_logits(self, batch: MicroBatch) -> Any:
        names = ("input_ids", "position_ids", "present", "loss_mask")
        batch = SimpleNamespace(**{name: getattr(batch, name).cpu().numpy() for name in names})
        return (outputs.logits for outputs in self.teacher.outputs(batch))


def _position_targets(targets: DeviceTargets, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """ids, log_p and log_p_tail at `temperature`, on the device."""
    odds = targets.tail_odds[:, targets.temperatures.index(temperature)]
    log_p = (targets.logits / temperature).log_softmax(dim=1) + F.logsigmoid(-odds)[:, None]
    return targets.ids.long(), log_p, F.logsigmoid(odds)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_of(way: str) -> int:
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", way], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout.split()[-1])


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return memory("VmHWM")


def report(recipe: Recipe, rounds: int) -> dict[str, Any]:
    trainee = Trainee(recipe, len(WAYS) * (rounds + 1))
    found = [{way: trainee.step(way) for way in WAYS} for _ in range(rounds + 1)][1:]
    peaks = {way: peak_of(way) for way in WAYS}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, one thread"
    return {
        "machine": f"{device}, load {os.getloadavg()[0]:.1f}",
        "versions": {"torch": torch.__version__},
        "recipe": recipe.name,
        "parameters": sum(parameter.numel() for parameter in trainee.engine.module.parameters()),
        "rounds": rounds,
        "rows": [
            {
                "name": way,
                "milliseconds": 1e3 * statistics.median(own[way] for own in found),
                "time_ratio": statistics.median(own[way] / own[HARD] for own in found),
                "peak_bytes": peaks[way],
                "memory_ratio": peaks[way] / peaks[HARD],
            }
            for way in WAYS
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load(options.recipe, options.overrides)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    if options.only:
        trainee = Trainee(recipe, 2)
        for _ in range(2):
            trainee.step(options.only)
        print(_peak())
        return
    found = report(recipe, options.rounds)
    if options.json:
        print(json.dumps(found))  # the last line: DeepSpeed tells of what it compiles in those before
        return
    print(f"{found['machine']}; torch {found['versions']['torch']}; {found['parameters'] / 1e6:.0f}M parameters")
    for row in found["rows"]:
        numbers = f"{row['milliseconds']:9.0f} ms {row['time_ratio']:7.3f}"
        print(f"{row['name']:16} {numbers} {row['peak_bytes'] / 2**30:8.2f} GiB {row['memory_ratio']:7.2f}")


if __name__ == "__main__":
    main()
