"""A rank that trains adapters for three steps, and exports them both ways.

    python -m tests.student.lora_worker OUT ZERO_STAGE RECIPE

`OUT/live.pt` gets every weight of the live model, `OUT/bucket` the elements of a bucket of gradients, `OUT/adapter` and
`OUT/merged` the exports.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch


def main(out: Path, stage: int, recipe_json: str) -> None:
    import deepspeed

    from distributed_kd.recipe import parse
    from distributed_kd.student.build import load_student, student_folder
    from distributed_kd.student.engine import deepspeed_config, start_engine
    from distributed_kd.student.export import gather_weights, write_adapters
    from distributed_kd.student.loop import take_step
    from distributed_kd.student.model import DistillationModel
    from distributed_kd.student.stream import to_micro_batch
    from tests.student.split_worker import batch_rows

    deepspeed.init_distributed(dist_backend="gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    data = json.loads(recipe_json)
    recipe = parse(data)
    folder = student_folder(recipe)
    model = load_student(recipe, folder)
    config = deepspeed_config(recipe.trainer, world)
    engine = start_engine(DistillationModel(model, recipe.objective, stage), recipe.trainer, config, 3)
    share = 8 // world
    rows = batch_rows()[rank * share : (rank + 1) * share]
    for _ in range(3):
        take_step(engine, [to_micro_batch(rows[at : at + 2], [0, 0], 2.0) for at in range(0, share, 2)])
    weights = gather_weights(model)
    trained = gather_weights(model, trained_alone=True)
    if rank == 0:
        torch.save(weights, out / "live.pt")
        (out / "bucket").write_text(str(engine.zero_reduce_bucket_size()))
        write_adapters(recipe, model, trained, folder, out / "adapter")
        data["student"]["lora"]["merge"] = True
        write_adapters(parse(data), model, trained, folder, out / "merged")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
