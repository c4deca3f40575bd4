"""A rank that computes one gradient: how it is split over ranks and micro-batches must not change it.

    python -m tests.student.split_worker OUT MICRO_BATCH ZERO_STAGE MODEL OBJECTIVE

OBJECTIVE may have `gradient_clipping`, of the trainer, beside its own keys.

Eight sequences of unequal masks, one of them with no scored position at all, make one global batch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def batch_rows() -> list[Any]:
    """Eight rows with 0 to 11 scored positions and targets of their own."""
    from distributed_kd.cache.shard import Row
    from distributed_kd.corpus.sequences import Sequence
    from distributed_kd.teacher.targets import top_k

    random = np.random.default_rng(0)
    rows = []
    for number, scored in enumerate([0, 11, 1, 7, 3, 11, 5, 2]):
        mask = np.zeros(12, bool)
        mask[:scored] = True
        ids = random.integers(2, 60, 12).astype(np.int32)
        sequence = Sequence(number, ids, mask, np.array([number]), np.array([12], np.int32), False)
        logits = torch.from_numpy(random.normal(size=(scored, 64)).astype(np.float32) * 3)
        rows.append(Row(sequence, top_k(logits, 6, (2.0,)).to_host()))
    return rows


def main(out: Path, micro_batch: int, stage: int, model_folder: str, said: dict[str, Any]) -> None:
    import deepspeed
    from transformers import AutoModelForCausalLM

    from distributed_kd.recipe import Objective, Trainer
    from distributed_kd.student.engine import deepspeed_config, start_engine
    from distributed_kd.student.export import gather_weights
    from distributed_kd.student.loop import take_step
    from distributed_kd.student.model import DistillationModel
    from distributed_kd.student.position_weights import PositionWeights
    from distributed_kd.student.stream import to_micro_batch

    clipping = said.pop("gradient_clipping", 0.0)
    objective = Objective(**said)
    deepspeed.init_distributed(dist_backend="gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    trainer = Trainer(
        global_batch=8, micro_batch=micro_batch, steps=1, learning_rate=0.1, schedule="constant", warmup_fraction=0.0,
        gradient_clipping=clipping,
        deepspeed={"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True},
    )  # fmt: skip
    config = deepspeed_config(trainer, world)
    # Plain gradient descent: the step shows the gradient itself, where Adam would show little but its sign.
    config["optimizer"] = {"type": "SGD", "params": {"lr": 0.1}}
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    engine = start_engine(DistillationModel(model, objective, stage), trainer, config, 1)
    share = 8 // world
    rows = batch_rows()[rank * share : (rank + 1) * share]
    weighting = PositionWeights.of(objective)
    parts = [rows[at : at + micro_batch] for at in range(0, share, micro_batch)]
    metrics = take_step(engine, [to_micro_batch(part, [0] * micro_batch, 2.0, weighting) for part in parts])
    weights = gather_weights(model)
    if rank == 0:
        torch.save({"weights": weights, "loss": metrics["loss"]}, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], json.loads(sys.argv[5]))
