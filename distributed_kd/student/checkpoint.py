"""Checkpoints that are complete or not there: DeepSpeed's own `latest` file is not atomic, our marker is.

A checkpoint is `step-NNNNNNNN/`, written by all ranks, and counts once `step-NNNNNNNN.json` stands beside it, which
names its files and their sizes. Frozen parameters are not in it: of adapters the whole model below them would be. What
ranks write is divided over them; `step-NNNNNNNN.universal/` is the same made whole, for another number of ranks.

Of a workdir in a bucket they are written to the disk of each host, its own ranks' files, and from there go to the
bucket in the background (`upload.py`): a host that is new downloads what its ranks need.

DeepSpeed 0.19.8 has writers in the background of its own, and none works here (tried on CPU ranks): `checkpoint.writer`
(FastPersist, with or without `decoupled`) reads CROSS_SIZE, which DeepSpeed's own launcher alone sets; then it ends the
start with an AttributeError unless `data_parallel` is said; and then the first save of ZeRO-1 with "refusing to
serialize non-leaf tensor", while its processes outlive the killed ranks. `datastates` is on no registry, and without it
DeepSpeed goes back to torch.save. What takes long is the way to the bucket, and that is in the background here.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from distributed_kd.errors import RequestError, WorkError
from distributed_kd.launch.watch import Watch
from distributed_kd.store.digest import differences
from distributed_kd.store.filesystem import Store
from distributed_kd.student.checkpoint_files import complete_steps, needed, prune, sharing_ranks, sizes, tag_of
from distributed_kd.student.universal import convert
from distributed_kd.student.upload import Uploads


@dataclass(frozen=True)
class Marker:
    """After how many steps a checkpoint was written, by how many ranks, and what it is.

    files: name -> bytes. made_from: what its student is made from. metrics: of its steps.
    """

    step: int
    world: int
    files: dict[str, int]
    made_from: dict[str, Any]
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """A complete checkpoint, whose files are on this host: after how many steps it was written, and their metrics."""

    tag: str
    step: int
    metrics: list[dict[str, Any]]


class Checkpoints:
    """Of one training, on the disk of each host and, with `bucket`, there as well. All ranks make one and call it.

    keep: how many complete ones are kept, beside the best, which `best.json` names: it has the lowest `held_out_loss`
    after its step, where metrics have any. name: of the training, for the watch.
    """

    def __init__(
        self, folder: Path, keep: int, made_from: dict[str, Any], bucket: Store | None, watch: Watch, name: str
    ) -> None:
        self._folder, self._keep, self._made_from, self._bucket = folder, keep, made_from, bucket
        self._watch, self._name, self._rank, self._world = watch, name, watch.rank, watch.world
        # Beside a workdir on a disk, they are on that disk, and all ranks see it.
        self._sharing = list(range(self._world)) if bucket is None else sharing_ranks(folder)
        self._is_first = self._rank == self._sharing[0]
        self._local = Store(str(folder))
        firsts = sorted(set(_of_ranks(self._sharing[0])))
        self._uploads = None if bucket is None else Uploads(bucket, watch, name, firsts)

    def save(self, engine: Any, step: int, metrics: list[dict[str, Any]], seconds: float = math.inf) -> None:
        """Afterwards it is complete on the hosts' disks, and on its way to the bucket; those not kept are gone.

        Waits for what is on its way already, so many seconds at most. Raises `WorkError`.
        """
        self.wait(seconds)
        tag = tag_of(step)
        if self._is_first:  # of a run that was begun again before this step
            for name in (f"{tag}.json", tag, f"{tag}.universal"):
                self._local.delete(name)
        torch.distributed.barrier()
        if not engine.save_checkpoint(str(self._folder), tag=tag, save_latest=False, exclude_frozen_parameters=True):
            raise WorkError(f"DeepSpeed did not save checkpoint {self._folder}/{tag}")
        own = sizes(self._folder / tag) if self._is_first else {}
        files = {name: size for part in _of_ranks(own) for name, size in part.items()}
        marker = Marker(step, self._world, files, self._made_from, metrics)
        if self._is_first:
            self._complete(self._local, marker)
        torch.distributed.barrier()
        if self._uploads is not None:
            self._uploads.begin(self._folder, tag, list(own), lambda bucket: self._complete(bucket, marker))

    def wait(self, seconds: float = math.inf) -> None:
        """Returns once nothing is on its way to the bucket, whether it got there or not, or after so many seconds."""
        if self._uploads is not None:
            self._uploads.wait(seconds)

    def find(self, engine_config: dict[str, Any]) -> Found | None:
        """The newest complete one that all hosts have or can have; before the engine is made of this config.

        What another number of ranks wrote is converted, once a disk, to what any number can read, and the config told
        so. Raises `RequestError` where it is another student's, `StoreError`, `WorkError`.
        """
        for step in self._steps():
            marker, source = self._marker(step)
            is_divided = marker.world != self._world and engine_config["zero_optimization"].get("stage", 0) > 0
            wanted = marker.files if is_divided else needed(marker.files, self._sharing)
            folder = self._folder / tag_of(step)
            there = sizes(folder)
            missing = [name for name, size in wanted.items() if there.get(name) != size]
            if not all(_of_ranks(not missing or source is not None)):
                continue
            if self._is_first and source is not None:
                for name in missing:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    source.get_file(f"{tag_of(step)}/{name}", str(folder / name))
                self._local.put(f"{tag_of(step)}.json", _json(marker))
            universal = f"{tag_of(step)}.universal"
            if is_divided:
                engine_config["checkpoint"] = {**engine_config.get("checkpoint", {}), "load_universal": True}
                if self._is_first and not (self._folder / universal).exists():
                    convert(folder, self._folder / universal)
            self._watch.meet(f"found/{self._name}")
            return Found(universal if is_divided else tag_of(step), step, marker.metrics)
        return None

    def load(self, engine: Any, found: Found) -> None:
        """Frozen parameters are what the engine has already, as the student begins. Raises `WorkError`."""
        is_whole = all(parameter.requires_grad for parameter in engine.module.parameters())
        path, _ = engine.load_checkpoint(str(self._folder), tag=found.tag, load_module_strict=is_whole)
        if path is None:
            where = f"{self._folder}/{found.tag}"
            raise WorkError(f"DeepSpeed could not load checkpoint {where}; delete it to go on from the one before")

    def _complete(self, store: Store, marker: Marker) -> None:
        store.put(f"{tag_of(marker.step)}.json", _json(marker))
        best = _best(complete_steps(store), marker.metrics)
        if best is not None:
            store.put("best.json", json.dumps({"step": best}).encode())
        prune(store, self._keep, best)

    def _steps(self) -> list[int]:
        """Of those complete on rank 0's disk or in the bucket, descending."""
        found = {
            *complete_steps(self._local),
            *(complete_steps(self._bucket) if self._bucket and not self._rank else ()),
        }
        return _of_first(sorted(found, reverse=True))

    def _marker(self, step: int) -> tuple[Marker, Store | None]:
        """Of that checkpoint, and where the files that a host lacks can be had."""
        name, found, is_there = f"{tag_of(step)}.json", b"", False
        if not self._rank:
            is_there = self._bucket is not None and self._bucket.exists(name)
            found = (self._bucket if is_there and self._bucket is not None else self._local).read(name)
        data, is_there = _of_first((found, is_there))
        marker = Marker(**json.loads(data))
        if marker.made_from != self._made_from:
            where = self._bucket if is_there and self._bucket is not None else self._local
            lines = "; ".join(differences(marker.made_from, self._made_from)[:6])
            raise RequestError(
                f"{where.uri}/{name} is of a student made from something else ({lines}); choose another `workdir`, or "
                "delete that folder to begin anew"
            )
        return marker, self._bucket if is_there else None


def _json(marker: Marker) -> bytes:
    return json.dumps(asdict(marker)).encode()


def _best(steps: list[int], metrics: list[dict[str, Any]]) -> int | None:
    losses = {step: metrics[step - 1].get("held_out_loss") for step in steps if step <= len(metrics)}
    known = {step: loss for step, loss in losses.items() if loss is not None}
    return min(known, key=lambda step: known[step]) if known else None


def _of_ranks(own: Any) -> list[Any]:
    """What each rank has, by rank."""
    found = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return found


def _of_first(own: Any) -> Any:
    """What rank 0 has."""
    found = [own]
    torch.distributed.broadcast_object_list(found)
    return found[0]
