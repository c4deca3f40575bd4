"""Checkpoints that are complete or not there: DeepSpeed's own `latest` file is not atomic, our marker is.

A checkpoint is `step-NNNNNNNN/`, written by all ranks, and counts once `step-NNNNNNNN.json` stands beside it. What they
write is divided over them; `step-NNNNNNNN.universal/` is the same made whole, for another number of ranks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distributed_kd.errors import WorkError
from distributed_kd.store.filesystem import Store


def _best(steps: list[int], metrics: list[dict[str, Any]]) -> int | None:
    losses = {step: metrics[step - 1].get("held_out_loss") for step in steps}
    known = {step: loss for step, loss in losses.items() if loss is not None}
    return min(known, key=lambda step: known[step]) if known else None


@dataclass(frozen=True)
class Found:
    """A complete checkpoint: after how many steps it was written, and their metrics."""

    folder: Path
    tag: str
    step: int
    metrics: list[dict[str, Any]]


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(int(marker.stem.removeprefix("step-")) for marker in folder.glob("step-*.json"))


def save(engine: Any, folder: Path, step: int, metrics: list[dict[str, Any]], keep: int) -> None:
    """All ranks call it. Afterwards the checkpoint is complete, and the newest `keep` and the best are left.

    The best, which `best.json` names, has the lowest `held_out_loss` after its step, where metrics have any.
    """
    tag = f"step-{step:08d}"
    if not engine.save_checkpoint(str(folder), tag=tag, save_latest=False):
        raise WorkError(f"DeepSpeed did not save checkpoint {folder}/{tag}")
    torch.distributed.barrier()
    world = torch.distributed.get_world_size()
    if torch.distributed.get_rank() == 0:
        Store(str(folder)).put(f"{tag}.json", json.dumps({"step": step, "world": world, "metrics": metrics}).encode())
        best = _best(complete_steps(folder), metrics)
        if best is not None:
            Store(str(folder)).put("best.json", json.dumps({"step": best}).encode())
        for old in complete_steps(folder)[:-keep]:
            if old == best:
                continue
            (folder / f"step-{old:08d}.json").unlink()
            for written in folder.glob(f"step-{old:08d}*"):
                shutil.rmtree(written)
    torch.distributed.barrier()


def find(folder: Path, engine_config: dict[str, Any]) -> Found | None:
    """The newest complete checkpoint, if there is one; all ranks call it, before the engine is made of this config.

    One that another number of ranks wrote is converted, once, to what any number can read, and the config told so.
    """
    steps = complete_steps(folder)
    if not steps:
        return None
    tag = f"step-{steps[-1]:08d}"
    marker = json.loads((folder / f"{tag}.json").read_text())
    world = torch.distributed.get_world_size()
    if marker.get("world", world) == world or not engine_config["zero_optimization"].get("stage", 0):
        return Found(folder, tag, steps[-1], marker["metrics"])
    engine_config["checkpoint"] = {**engine_config.get("checkpoint", {}), "load_universal": True}
    universal = f"{tag}.universal"
    if torch.distributed.get_rank() == 0 and not (folder / universal).exists():
        _convert(folder / tag, folder / universal)
    torch.distributed.barrier()
    return Found(folder, universal, steps[-1], marker["metrics"])


def load(engine: Any, found: Found) -> None:
    """All ranks call it. Raises `WorkError`."""
    path, _ = engine.load_checkpoint(str(found.folder), tag=found.tag)
    if path is None:
        where = f"{found.folder}/{found.tag}"
        raise WorkError(f"DeepSpeed could not load checkpoint {where}; delete it to go on from the one before")


def _convert(source: Path, target: Path) -> None:
    """To DeepSpeed's universal checkpoint, whose tensors are whole; it appears once it is complete."""
    temporary = target.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    command = [
        sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(source),
        "--output_folder", str(temporary), "--num_extract_workers", "1", "--num_merge_workers", "1",
        "--inject_missing_state",
    ]  # fmt: skip
    alone = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(command, capture_output=True, text=True, env=alone)
    if done.returncode:
        raise WorkError(
            f"checkpoint {source} was written by another number of ranks and DeepSpeed cannot convert it "
            f"({done.stderr.strip().splitlines()[-1][:200]}); go on with as many, or delete it"
        )
    (source.parent / "latest_universal").unlink(missing_ok=True)
    temporary.rename(target)
