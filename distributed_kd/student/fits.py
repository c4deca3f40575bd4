"""Whether a cache is the recipe's, and a student one that can learn from it: asked before any rank is started.

Each refusal is a `RequestError` that names what does not fit and what to choose.
"""

from __future__ import annotations

from pathlib import Path

from distributed_kd.cache.manifest import imported_from_of, made_from_of
from distributed_kd.cache.reader import LogitCache
from distributed_kd.corpus.sequences import Sequences, SequencesManifest
from distributed_kd.errors import RequestError
from distributed_kd.models.config import hidden_size, load_config, longest_sequence, refuse_other_task, vocabulary_size
from distributed_kd.models.tokenizer import inputs_sha256
from distributed_kd.recipe import Recipe
from distributed_kd.store.digest import differences
from distributed_kd.store.manifest import refuse_other
from distributed_kd.student.build import empty_student, mark_trained, student_folder
from distributed_kd.student.engine import deepspeed_config
from distributed_kd.student.held_out import held_out_sequences
from distributed_kd.student.stream import TrainingRows
from distributed_kd.student.trackers import refuse_missing
from distributed_kd.student.worker import number_of_steps


def refuse_other_cache(recipe: Recipe, logits: LogitCache) -> None:
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


def refuse_what_does_not_fit(recipe: Recipe, logits: TrainingRows, ranks: int) -> None:
    """What no rank could begin with: batches, options of engine and trackers, held-out rows, student, labels."""
    trainer, sequences = recipe.trainer, Sequences.of(recipe)
    _refuse_batches(recipe, len(logits), ranks)
    deepspeed_config(trainer, ranks)
    refuse_missing(trainer.track)
    if trainer.evaluate_every:
        held_out_sequences(sequences, 1)
    folder = student_folder(recipe)
    mark_trained(empty_student(folder), recipe)
    _refuse_other_student(recipe, folder, logits, sequences.manifest)
    _refuse_no_label(recipe, sequences.manifest)


def _refuse_batches(recipe: Recipe, sequences: int, ranks: int) -> None:
    trainer = recipe.trainer
    if trainer.global_batch % (ranks * trainer.micro_batch):
        raise RequestError(
            f"trainer.global_batch {trainer.global_batch} is not a multiple of processes x micro_batch "
            f"({ranks} x {trainer.micro_batch})"
        )
    if number_of_steps(recipe, sequences) < 1:
        raise RequestError(
            f"trainer.global_batch {trainer.global_batch} is more than the cache's {sequences} sequences "
            f"in {trainer.epochs} epochs; lower it"
        )


def _refuse_other_student(recipe: Recipe, folder: Path, logits: TrainingRows, sequences: SequencesManifest) -> None:
    """It must take the task, the length, the inputs and the classes of the rows, as its configuration says."""
    config = load_config(folder)
    refuse_other_task(config, str(folder), recipe.corpus)
    bound, longest = longest_sequence(config), sequences.sequence_length
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
    classes = sequences.made_from.get("classes")
    if classes is not None and vocabulary_size(config) != classes:
        raise RequestError(
            f"the student has {vocabulary_size(config)} classes and the sequences {classes} ({folder}); choose a "
            "student of as many"
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


def _refuse_no_label(recipe: Recipe, sequences: SequencesManifest) -> None:
    split = sequences.splits["train"]
    if split.unlabelled == split.positions and recipe.objective.alpha < 1.0:
        raise RequestError(
            f"none of the {split.positions:,} training positions has a label: set objective.alpha=1 and baseline=off, "
            "or give labels to some rows"
        )
