"""The store that a recipe writes to: whether it takes files and gives them back, and what its clock says."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from distributed_kd.doctor.finding import Finding
from distributed_kd.recipe import Recipe
from distributed_kd.store.filesystem import Store

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


@contextmanager
def _probe(workdir: Store, data: bytes) -> Iterator[str]:
    """The name of a file of these bytes, there for the block alone."""
    name = f".doctor-{uuid.uuid4().hex}"
    workdir.put(name, data)
    try:
        yield name
    finally:
        workdir.delete(name)
