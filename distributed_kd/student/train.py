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
from distributed_kd.cache.manifest import imported_from_of, made_from_of
from distributed_kd.cache.reader import LogitCache
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.errors import RequestError
from distributed_kd.launch import hostfile, ray_train, torchrun
from distributed_kd.launch.group import joined_ranks, print_line
from distributed_kd.launch.processors import use_processors
from distributed_kd.launch.rank import is_first, take_place
from distributed_kd.launch.ranks import Notes, shown
from distributed_kd.launch.stop import before_the_first_step, on_stop
from distributed_kd.models.config import hidden_size, load_config, longest_sequence, refuse_other_task, vocabulary_size
from distributed_kd.models.locate import cache_folder
from distributed_kd.models.tokenizer import inputs_sha256
from distributed_kd.recipe import Recipe, Trainer, dump
from distributed_kd.store.digest import differences
from distributed_kd.store.filesystem import Store
from distributed_kd.store.manifest import refuse_other
from distributed_kd.student import artifact, worker
from distributed_kd.student.build import empty_student, mark_trained, student_folder
from distributed_kd.student.engine import deepspeed_config
from distributed_kd.student.held_out import held_out_sequences
from distributed_kd.student.stream import TrainingRows
from distributed_kd.student.trackers import refuse_missing
from distributed_kd.student.worker import number_of_steps, open_rows

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
        _refuse_other_cache(recipe, logits)
    own = artifact.arm_recipe(recipe, arm)
    store = workdir.child(arm)
    found = artifact.StudentManifest.read(store)
    made_from = artifact.made_from_of(own, logits.fingerprint, artifact.start_of(own.student, found))
    if found is not None:
        refuse_other(found, made_from, store, f"a {arm}")
        console.say(f"train: {arm} done already ({store.uri}, fingerprint {found.fingerprint[:12]}), skipped")
        return False
    _refuse_what_does_not_fit(own, logits, ranks)
    store.check_writable()
    store.put(artifact.RECIPE, dump(own).encode())
    return True


def _refuse_disk_of_its_own(store: Store) -> None:
    if not store.exists(artifact.RECIPE):
        raise RequestError(
            f"{store.uri} on host {socket.gethostname()} is not that of rank 0: ranks on several hosts need a "
            "`workdir` that all of them see, in a bucket or on a shared disk"
        )


def _refuse_other_cache(recipe: Recipe, logits: LogitCache) -> None:
    """The cache must be this recipe's; the teacher's files are not asked, since they may be gone."""
    sequences = Sequences.of(recipe)
    if logits.manifest.merge is not None:
        _refuse_other_merge(recipe, logits, sequences)
        return
    imported = logits.manifest.imported
    if imported is not None:
        wanted = imported_from_of(recipe, sequences.manifest.fingerprint, imported)
    else:
        wanted = made_from_of(recipe, sequences.manifest.fingerprint, logits.manifest.teacher_identity)
    refuse_other(logits.manifest, wanted, logits.store, "a cache")


def _refuse_other_merge(recipe: Recipe, logits: LogitCache, sequences: Sequences) -> None:
    """A recipe does not say which teachers a merge is of, or of what targets: it must fit sequences and objective."""
    manifest, own = logits.manifest, sequences.manifest
    found = {"sequences": manifest.made_from["sequences"], "tokenizer_sha256": manifest.tokenizer_sha256}
    wanted = {"sequences": own.fingerprint, "tokenizer_sha256": own.tokenizer.sha256}
    if found != wanted:
        raise RequestError(
            f"{logits.store.uri} is a merge over other sequences than {sequences.store.uri} "
            f"({'; '.join(differences(found, wanted))}); merge caches of these"
        )
    if recipe.objective.temperature not in manifest.temperatures:
        raise RequestError(
            f"objective.temperature {recipe.objective.temperature:g} is not in {logits.store.uri}; it holds "
            f"{manifest.temperatures}: choose one of them, or merge caches that have it"
        )
    if manifest.method == "sample":  # whatever the recipe's own targets are
        try:
            recipe.objective.refuse_drawn_targets()
        except ValueError as error:
            raise RequestError(f"{logits.store.uri} is a merge of drawn targets: {error}") from error


def _refuse_what_does_not_fit(recipe: Recipe, logits: TrainingRows, ranks: int) -> None:
    trainer = recipe.trainer
    if trainer.global_batch % (ranks * trainer.micro_batch):
        raise RequestError(
            f"trainer.global_batch {trainer.global_batch} is not a multiple of processes x micro_batch "
            f"({ranks} x {trainer.micro_batch})"
        )
    if number_of_steps(recipe, len(logits)) < 1:
        raise RequestError(
            f"trainer.global_batch {trainer.global_batch} is more than the cache's {len(logits)} sequences "
            f"in {trainer.epochs} epochs; lower it"
        )
    deepspeed_config(trainer, ranks)
    refuse_missing(trainer.track)
    if trainer.evaluate_every:
        held_out_sequences(Sequences.of(recipe), 1)
    folder = student_folder(recipe)
    mark_trained(empty_student(folder), recipe)
    config = load_config(folder)
    refuse_other_task(config, str(folder), recipe.corpus)
    bound = longest_sequence(config)
    longest = Sequences.of(recipe).manifest.sequence_length
    if bound is not None and longest > bound:
        raise RequestError(f"sequences of {longest} ids are beyond the student's {bound} positions ({folder})")
    own = inputs_sha256(folder)
    if own != logits.inputs_sha256:
        what = "features and classes are" if recipe.corpus.takes_features else "tokenizer is"
        raise RequestError(
            f"the student's {what} not the cache's: {recipe.student.model} has {own[:12]}, the cache of teacher "
            f"{logits.teacher} has {logits.inputs_sha256[:12]}; choose a student of the same"
        )
    if recipe.objective.cosine > 0.0:
        _refuse_other_width(hidden_size(config), logits, folder)
    sequences = Sequences.of(recipe).manifest
    classes = sequences.made_from.get("classes")
    if classes is not None and vocabulary_size(config) != classes:
        raise RequestError(
            f"the student has {vocabulary_size(config)} classes and the sequences {classes} ({folder}); choose a "
            "student of as many"
        )
    split = sequences.splits["train"]
    if split.unlabelled == split.positions and recipe.objective.alpha < 1.0:
        raise RequestError(
            f"none of the {split.positions:,} training positions has a label: set objective.alpha=1 and baseline=off, "
            "or give labels to some rows"
        )


def _refuse_other_width(own: int, logits: TrainingRows, folder: Path) -> None:
    assert isinstance(logits, LogitCache)  # the recipe's own rule: cosine needs targets.hidden, and that a teacher
    hidden = logits.manifest.hidden
    if hidden is None:
        raise RequestError(
            f"objective.cosine needs hidden states, and {logits.store.uri} keeps none; capture with targets.hidden"
        )
    if own != hidden.width:
        raise RequestError(
            f"objective.cosine: the student's hidden states have {own} numbers ({folder}), those of {logits.store.uri} "
            f"{hidden.width}, and there is no projection between them; set it to 0, or choose a student of that width"
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
