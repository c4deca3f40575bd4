"""Checkpoints that are complete or not there: DeepSpeed's own `latest` file is not atomic, our marker is.

A checkpoint is `step-NNNNNNNN/`, written by all ranks, and counts once `step-NNNNNNNN.json` stands beside it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from distributed_kd.errors import RequestError, WorkError
from distributed_kd.store.filesystem import Store


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(int(marker.stem.removeprefix("step-")) for marker in folder.glob("step-*.json"))


def save(engine: Any, folder: Path, step: int, metrics: list[dict[str, Any]], keep: int) -> None:
    """All ranks call it. Afterwards the checkpoint is complete, and only the newest `keep` are left."""
    tag = f"step-{step:08d}"
    if not engine.save_checkpoint(str(folder), tag=tag, save_latest=False):
        raise WorkError(f"DeepSpeed did not save checkpoint {folder}/{tag}")
    torch.distributed.barrier()
    world = torch.distributed.get_world_size()
    if torch.distributed.get_rank() == 0:
        Store(str(folder)).put(f"{tag}.json", json.dumps({"step": step, "world": world, "metrics": metrics}).encode())
        for old in complete_steps(folder)[:-keep]:
            (folder / f"step-{old:08d}.json").unlink()
            shutil.rmtree(folder / f"step-{old:08d}")
    torch.distributed.barrier()


def load_newest(engine: Any, folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """Loads the newest complete checkpoint: (its step, the metrics up to it), or (0, []) when there is none.

    Raises `RequestError` where another number of ranks wrote it.
    """
    steps = complete_steps(folder)
    if not steps:
        return 0, []
    tag = f"step-{steps[-1]:08d}"
    marker = json.loads((folder / f"{tag}.json").read_text())
    world = torch.distributed.get_world_size()
    if marker.get("world", world) != world:
        raise RequestError(
            f"checkpoint {folder}/{tag} was written by {marker['world']} ranks and cannot be read by {world}; go on "
            f"with {marker['world']}, or delete {folder} to begin anew"
        )
    path, _ = engine.load_checkpoint(str(folder), tag=tag)
    if path is None:
        raise WorkError(f"DeepSpeed could not load checkpoint {folder}/{tag}; delete it to go on from the one before")
    return steps[-1], marker["metrics"]
