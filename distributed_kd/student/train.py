"""The train stage: the student from the cache, then the baseline, each in ranks of its own.

The teacher is not loaded here, and need not be on disk.
"""

from __future__ import annotations

from pathlib import Path

from distributed_kd import cache, console
from distributed_kd.cache.manifest import FOLDER as CACHE_FOLDER
from distributed_kd.cache.manifest import made_from_of
from distributed_kd.cache.reader import LogitCache
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.errors import RequestError
from distributed_kd.launch.torchrun import launch
from distributed_kd.models.config import load_config, longest_sequence, refuse_other_task
from distributed_kd.models.locate import cache_folder
from distributed_kd.models.tokenizer import load_tokenizer, tokenizer_sha256
from distributed_kd.recipe import Recipe, dump
from distributed_kd.store.digest import differences
from distributed_kd.store.filesystem import Store
from distributed_kd.store.manifest import refuse_other
from distributed_kd.student import artifact
from distributed_kd.student.build import empty_student, freeze, student_folder
from distributed_kd.student.engine import deepspeed_config
from distributed_kd.student.worker import number_of_steps


def train(recipe: Recipe) -> None:
    """Writes `WORKDIR/student` and `WORKDIR/baseline`, or finds them done. Raises `RequestError`, `WorkError`."""
    workdir = Store(recipe.workdir)
    logits = cache.open(workdir.child(CACHE_FOLDER))
    _refuse_other_cache(recipe, logits, workdir)
    processes = _processes(recipe)
    for arm in artifact.ARMS if recipe.baseline is not None else ("student",):
        own = artifact.arm_recipe(recipe, arm)
        store = workdir.child(arm)
        made_from = artifact.made_from_of(own, logits.manifest.fingerprint)
        found = artifact.StudentManifest.read(store)
        if found is not None:
            refuse_other(found, made_from, store, f"a {arm}")
            console.say(f"train: {arm} done already ({store.uri}, fingerprint {found.fingerprint[:12]}), skipped")
            continue
        _refuse_what_does_not_fit(own, logits, processes)
        store.check_writable()
        store.put("recipe.yaml", dump(own).encode())
        launch("distributed_kd.student.worker", recipe, arm, processes, _log(store))


def _refuse_other_cache(recipe: Recipe, logits: LogitCache, workdir: Store) -> None:
    """The cache must be this recipe's; the teacher's files are not asked, since they may be gone."""
    sequences = Sequences.of(recipe)
    if logits.manifest.merge is not None:
        _refuse_other_merge(recipe, logits, sequences)
        return
    wanted = made_from_of(recipe, sequences.manifest.fingerprint, logits.manifest.teacher_identity)
    refuse_other(logits.manifest, wanted, logits.store, "a cache")


def _refuse_other_merge(recipe: Recipe, logits: LogitCache, sequences: Sequences) -> None:
    """A recipe does not say which teachers a merge is of: it must be over the same sequences, for the objective."""
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


def _refuse_what_does_not_fit(recipe: Recipe, logits: LogitCache, processes: int) -> None:
    trainer = recipe.trainer
    if trainer.global_batch % (processes * trainer.micro_batch):
        raise RequestError(
            f"trainer.global_batch {trainer.global_batch} is not a multiple of processes x micro_batch "
            f"({processes} x {trainer.micro_batch})"
        )
    if number_of_steps(recipe, len(logits)) < 1:
        raise RequestError(
            f"trainer.global_batch {trainer.global_batch} is more than the cache's {len(logits)} sequences "
            f"in {trainer.epochs} epochs; lower it"
        )
    deepspeed_config(trainer, processes)
    folder = student_folder(recipe)
    freeze(empty_student(folder), recipe.student)
    config = load_config(folder)
    refuse_other_task(config, str(folder), recipe.corpus.task)
    bound = longest_sequence(config)
    longest = Sequences.of(recipe).manifest.sequence_length
    if bound is not None and longest > bound:
        raise RequestError(f"sequences of {longest} ids are beyond the student's {bound} positions ({folder})")
    own = tokenizer_sha256(load_tokenizer(folder))
    if own != logits.manifest.tokenizer_sha256:
        raise RequestError(
            f"the student's tokenizer is not the cache's: {recipe.student.model} has {own[:12]}, the cache of teacher "
            f"{logits.manifest.teacher} has {logits.manifest.tokenizer_sha256[:12]}; choose a student of the same one"
        )


def _processes(recipe: Recipe) -> int:
    if isinstance(recipe.trainer.processes, int):
        return recipe.trainer.processes
    import torch

    return max(1, torch.cuda.device_count())


def _log(store: Store) -> Path:
    return Path(store.path("train.log")) if store.is_local else cache_folder() / "logs" / "train.log"
