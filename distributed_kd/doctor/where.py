"""The store that a recipe writes to: whether it takes files and gives them back, its room, and what its clock says."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from distributed_kd.cache.manifest import CacheManifest, store_of
from distributed_kd.corpus.sequences import FOLDER, SequencesManifest
from distributed_kd.doctor.finding import Finding
from distributed_kd.models.config import load_config
from distributed_kd.models.locate import locate
from distributed_kd.recipe import Recipe
from distributed_kd.store.filesystem import Store
from distributed_kd.teacher.capture import bytes_needed, hidden_states

_MOST_SKEW = 10.0  # seconds; a capture's lease counts 90


def store(recipe: Recipe) -> Finding:
    """A write, a read and a delete."""
    workdir = Store(recipe.workdir)
    data = os.urandom(64)
    with _probe(workdir, data) as name:
        is_same = workdir.read(name) == data
    if not is_same:
        return Finding("store", "missing", f"{workdir.uri} gave other bytes than were written", "use another store")
    return Finding("store", "ok", f"{workdir.uri} was written, read and deleted in")


def room(recipe: Recipe) -> Finding:
    """On a local workdir's disk, against what a capture that has not begun asks for: it would be refused."""
    workdir = Store(recipe.workdir)
    free = workdir.free_bytes()
    if free is None:
        return Finding("room", "ok", f"{workdir.uri} is on no disk of this machine")
    sequences = SequencesManifest.read(workdir.child(FOLDER))
    if sequences is None:
        return Finding("room", "ok", f"{_gb(free)} free below {workdir.uri}; what a cache needs is known once prepared")
    captures = [recipe.of_teacher(place) for place in range(len(recipe.teachers))]
    captures = [recipe] if len(captures) == 1 else captures
    needed = sum(_bytes_of(own, sequences) for own in captures if CacheManifest.read(store_of(own)) is None)
    if free < needed:
        fix = "free some, or choose another `workdir`, a smaller targets.k or capture.codec=compact-1"
        return Finding("room", "missing", f"{_gb(free)} free below {workdir.uri}, of about {_gb(needed)} needed", fix)
    return Finding("room", "ok", f"{_gb(free)} free below {workdir.uri}, and {_gb(needed)} needed")


def clock(recipe: Recipe) -> Finding:
    """Of this host against the store's, by which leases and rendezvous are judged."""
    workdir = Store(recipe.workdir)
    before = time.time()
    with _probe(workdir, b"dkd") as name:
        skew = workdir.fs.modified(workdir.path(name)).timestamp() - (before + time.time()) / 2
    if abs(skew) > _MOST_SKEW:
        fix = "keep the clocks together (chrony, ntp): leases of a capture are told by them"
        return Finding("clock", "warning", f"{skew:+.0f} s from {workdir.uri}'s", fix)
    return Finding("clock", "ok", f"within {max(1.0, abs(skew)):.0f} s of {workdir.uri}'s")


def _bytes_of(recipe: Recipe, sequences: SequencesManifest) -> int:
    """That the cache of the recipe's one teacher takes, about."""
    [teacher] = recipe.teachers
    hidden = None
    if recipe.targets.hidden is not None:
        hidden = hidden_states(recipe, load_config(locate(teacher.model, teacher.revision, weights=False)))
    outcomes = sequences.made_from.get("classes", sequences.tokenizer.vocabulary_size)
    return bytes_needed(sequences.splits["train"].positions, recipe.targets.keeps(outcomes), hidden)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


@contextmanager
def _probe(workdir: Store, data: bytes) -> Iterator[str]:
    """The name of a file of these bytes, there for the block alone."""
    name = f".doctor-{uuid.uuid4().hex}"
    workdir.put(name, data)
    try:
        yield name
    finally:
        workdir.delete(name)
