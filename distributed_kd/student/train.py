"""The train stage: the student from the cache, then the baseline, each in ranks of its own.

The teacher is not loaded here, and need not be on disk.
"""

from __future__ import annotations

import gc
import socket
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from distributed_kd import console
from distributed_kd.cache.reader import LogitCache
from distributed_kd.errors import RequestError
from distributed_kd.launch import hostfile, ray_train, torchrun
from distributed_kd.launch.group import joined_ranks, print_line
from distributed_kd.launch.processors import use_processors
from distributed_kd.launch.rank import is_first, take_place
from distributed_kd.launch.ranks import Notes, shown
from distributed_kd.launch.stop import before_the_first_step, on_stop
from distributed_kd.models.locate import cache_folder
from distributed_kd.recipe import Recipe, Trainer, dump
from distributed_kd.store.filesystem import Store
from distributed_kd.store.manifest import refuse_other
from distributed_kd.student import artifact, worker
from distributed_kd.student.fits import refuse_other_cache, refuse_what_does_not_fit
from distributed_kd.student.worker import open_rows

_NOTES = "launch"  # beside the artifact, while ranks run on other hosts
_SHOW_SECONDS = 0.5


def train(recipe: Recipe) -> None:
    """Writes `WORKDIR/student` and `WORKDIR/baseline`, or finds them done. Raises `RequestError`, `WorkError`.

    Started as one rank of several by another launcher, this process is that rank; else it starts them.
    """
    world = take_place()
    if world is not None:
        _train_as_rank(recipe, world)
        return
    ranks = _ranks(recipe.trainer)
    with on_stop(_stop):
        for arm in _arms(recipe):
            if _is_due(recipe, arm, ranks):
                _launch(recipe, arm, ranks)


def _stop(number: int) -> NoReturn:
    raise before_the_first_step()


def _launch(recipe: Recipe, arm: str, ranks: int) -> None:
    trainer = recipe.trainer
    store = Store(recipe.workdir).child(arm)
    if trainer.started_by == "local":
        torchrun.launch("distributed_kd.student.worker", recipe, arm, ranks, _log(store))
        return
    store.delete(_NOTES)
    notes = Notes(f"{store.uri}/{_NOTES}" if not store.is_local else store.path(_NOTES))
    if trainer.started_by == "deepspeed":
        assert trainer.hostfile is not None  # the recipe's own rule
        hostfile.launch("distributed_kd.student.worker", recipe, arm, trainer.hostfile, notes, _log(store))
    else:
        ray_train.launch(worker.work, recipe, arm, ranks, notes)
    store.delete(_NOTES)


def _train_as_rank(recipe: Recipe, world: int) -> None:
    """The arms in turn, in one process group. Rank 0 decides what is due, and shows progress."""
    use_processors()
    first = is_first()
    debug = "--debug" in sys.argv
    with (
        joined_ranks(recipe.trainer.timeout_minutes, print_line, debug) as watch,
        tempfile.TemporaryDirectory(prefix="dkd-rank-") as folder,
    ):
        for arm in _arms(recipe):
            own = Path(folder) / arm
            own.mkdir()
            begun = time.time()
            if first:
                watch.tell(f"{arm} due", str(_is_due(recipe, arm, world)))
            if watch.ask(f"{arm} due") == str(False):
                continue
            _refuse_disk_of_its_own(Store(recipe.workdir).child(arm))
            with shown(arm, Notes(str(own)).progress, _SHOW_SECONDS) if first else nullcontext():
                worker.run(recipe, arm, own, begun, watch)
            watch.meet(arm)
            gc.collect()  # DeepSpeed's engine holds itself; the next arm needs its memory


def _arms(recipe: Recipe) -> tuple[str, ...]:
    return artifact.ARMS if recipe.baseline is not None else ("student",)


def _is_due(recipe: Recipe, arm: str, ranks: int) -> bool:
    """Whether it is still to be trained: then it can be, and its recipe is written."""
    workdir = Store(recipe.workdir)
    logits = open_rows(recipe)
    if isinstance(logits, LogitCache):
        refuse_other_cache(recipe, logits)
    own = artifact.arm_recipe(recipe, arm)
    store = workdir.child(arm)
    found = artifact.StudentManifest.read(store)
    made_from = artifact.made_from_of(own, logits.fingerprint, artifact.start_of(own.student, found))
    if found is not None:
        refuse_other(found, made_from, store, f"a {arm}")
        console.say(f"train: {arm} done already ({store.uri}, fingerprint {found.fingerprint[:12]}), skipped")
        return False
    refuse_what_does_not_fit(own, logits, ranks)
    store.check_writable()
    store.put(artifact.RECIPE, dump(own).encode())
    return True


def _refuse_disk_of_its_own(store: Store) -> None:
    if not store.exists(artifact.RECIPE):
        raise RequestError(
            f"{store.uri} on host {socket.gethostname()} is not that of rank 0: ranks on several hosts need a "
            "`workdir` that all of them see, in a bucket or on a shared disk"
        )


def _ranks(trainer: Trainer) -> int:
    if trainer.hostfile is not None:
        return sum(hostfile.slots(trainer.hostfile).values())
    if trainer.workers is not None:
        return trainer.workers
    if isinstance(trainer.processes, int):
        return trainer.processes
    import torch

    return max(1, torch.cuda.device_count())


def _log(store: Store) -> Path:
    return Path(store.path("train.log")) if store.is_local else cache_folder() / "logs" / "train.log"
