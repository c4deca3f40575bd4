"""A cache from lists of logprobs that another program has made of the same sequences, with no teacher run here.

Such lists say what the teacher gives to a few ids at T = 1 and nothing of the rest, whose mass is 1 less theirs. At
another temperature every id's logit counts, so that no other one can be had from them. A tail from 1 - mass is as
exact as the lists are: of float32 logprobs to about 1e-7 of probability, where a capture's own tail is a logsumexp.

The source is read twice: once to be checked whole, and then to be written, so that bad rows leave nothing behind.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from distributed_kd import console
from distributed_kd.cache import codecs
from distributed_kd.cache.manifest import CacheManifest, imported_from_of, put_tables, read_tables, store_of
from distributed_kd.cache.receipts import Receipts
from distributed_kd.cache.shard import Row, build_tables
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.cache.writer import commit, put_rows
from distributed_kd.corpus.sequences import Sequence, Sequences
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Recipe, dump
from distributed_kd.store.filesystem import open_filesystem
from distributed_kd.store.lease import lease
from distributed_kd.store.manifest import Run, peak_memory_bytes, refuse_other
from distributed_kd.teacher import position_lists
from distributed_kd.teacher.capture import new_manifest

_OVER_ONE = 1e-3  # by which the mass of a list may be above 1: rounding, of half precision too
_NO_TAIL = 1e-5  # a mean tail below it is that of lists which were normalised


@dataclass(frozen=True)
class _Source:
    uri: str
    kind: str

    def digest(self) -> str:
        """sha256 of its files' bytes, one after the other."""
        fs, _ = open_filesystem(self.uri)
        total = hashlib.sha256()
        paths = list(position_lists.find(self.kind).files(self.uri))
        done, pace = 0, console.Pace("bytes")
        with console.progress("import: read", sum(fs.size(path) for path in paths)) as advance:
            for path in paths:
                with fs.open(path, "rb") as stream:
                    while data := stream.read(1 << 20):
                        total.update(data)
                        done += len(data)
                        advance(done, pace(done))
        return total.hexdigest()

    def rows(self) -> Iterator[Any]:
        """As the format has them."""
        fs, _ = open_filesystem(self.uri)
        found = position_lists.find(self.kind)
        for path in found.files(self.uri):
            try:
                yield from found.rows(fs, path)
            except (OSError, pa.ArrowException) as error:
                raise RequestError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error


def import_lists(recipe: Recipe, uri: str, kind: str, normalised: bool = False) -> CacheManifest:
    """Writes `WORKDIR/cache` of the lists in `uri`, one row for each training sequence of the workdir, in their order.

    kind: `position_lists.find`. normalised: whether lists that sum to 1 over the kept ids are taken, without a tail.
    Raises `RequestError` for a recipe or a source that does not fit, naming the row; nothing is then written.
    """
    begun = time.monotonic()
    source = _Source(uri, kind)
    _refuse_what_lists_cannot_give(recipe)
    sequences = Sequences.of(recipe)
    store = store_of(recipe)
    said = {"format": kind, "sha256": source.digest(), "normalised": normalised}
    made_from = imported_from_of(recipe, sequences.manifest.fingerprint, said)
    found = CacheManifest.read(store)
    if found is not None:
        refuse_other(found, made_from, store, "a cache")
        if found.index is not None:
            console.say(f"import: done already ({store.uri}, fingerprint {found.fingerprint[:12]}), skipped")
            return found
    shards = sequences.shards("train")
    manifest = new_manifest(recipe, sequences, made_from, len(shards), weights=False)
    positions = int(shards.positions.sum())

    sample: list[Row] = []
    step = max(1, positions // recipe.capture.table_positions)  # about so many positions in all
    tail, done, pace = 0.0, 0, console.Pace("positions")
    with console.progress("import: check", positions) as advance:
        for _, rows in _read(source, sequences, manifest):
            sample += [row for row in rows if row.sequence.sequence_id % step == 0]
            tail += sum(float(np.exp(row.targets.log_probabilities(1.0)[1]).sum()) for row in rows)
            done += sum(len(row.targets) for row in rows)
            advance(done, pace(done))
    if not normalised and positions and manifest.k < manifest.vocabulary_size and tail / positions < _NO_TAIL:
        raise RequestError(
            f"--from {uri}: every list sums to 1, so it was normalised over its ids and what the teacher gave to all "
            "others is lost; import the logprobs as they were served, or say --normalised to train without a tail"
        )
    store.check_writable()
    with lease(store, "dkd import"):
        store.put("recipe.yaml", dump(recipe).encode())
        if codecs.find(manifest.codec).build_tables is not None:
            tables = put_tables(store, build_tables(sample, manifest.codec, manifest.vocabulary_size, 0))
            manifest = manifest.model_copy(update={"tables": tables})
        manifest.put(store)
        receipts = Receipts(manifest.fingerprint, manifest.shards)
        data = read_tables(store, manifest.tables)
        with console.progress("import: write", positions) as advance:
            done, pace = 0, console.Pace("positions")
            for shard, rows in _read(source, sequences, manifest):
                receipts[shard] = put_rows(store, manifest, shard, rows, data)
                done += receipts[shard].entry.positions
                advance(done, pace(done))
        Run(time.monotonic() - begun, peak_memory_bytes()).put(store)
        return commit(store, manifest, receipts)


def _refuse_what_lists_cannot_give(recipe: Recipe) -> None:
    targets = recipe.targets
    if len(recipe.teachers) != 1:
        raise RequestError(f"the recipe names {len(recipe.teachers)} teachers; name the one that was served")
    if targets.temperatures != [1.0]:
        raise RequestError(
            f"targets.temperatures {[float(t) for t in targets.temperatures]}: logprobs of a few ids give T = 1 alone, "
            "since at another temperature the mass of the rest depends on each of its logits; set [1.0], or capture"
        )
    if targets.hidden is not None:
        raise RequestError("targets.hidden: lists of logprobs have no hidden states; leave it out, or capture")
    if targets.method != "top_k":
        raise RequestError(f"targets.method {targets.method}: lists of the most probable ids are top_k; set that")
    if recipe.corpus.task not in ("causal_lm", "chat"):
        raise RequestError(f"corpus.task {recipe.corpus.task}: lists are of next tokens; capture it with `dkd cache`")


def _read(source: _Source, sequences: Sequences, manifest: CacheManifest) -> Iterator[tuple[int, list[Row]]]:
    """Shard by shard, the training sequences with their targets. Raises `RequestError` naming the first bad row."""
    lists_of = position_lists.find(source.kind).lists
    rows, number = source.rows(), 0
    for entry in sequences.shards("train"):
        done = []
        for sequence in sequences.read(entry.shard):
            row = next(rows, None)
            if row is None:
                _refuse_count(source, sequences, number)
            number += 1
            try:
                _refuse_isolated(sequence)
                targets = _targets(lists_of(row, sequence), sequence, manifest.k, manifest.vocabulary_size)
            except ValueError as error:
                name = f"{source.uri} row {number} (sequence {sequence.sequence_id})"
                raise RequestError(f"{name}: {error}") from error
            done.append(Row(sequence, targets))
        yield entry.shard, done
    if next(rows, None) is not None:
        _refuse_count(source, sequences, number + 1 + sum(1 for _ in rows))


def _refuse_count(source: _Source, sequences: Sequences, rows: int) -> NoReturn:
    wanted = sequences.manifest.splits["train"].sequences
    raise RequestError(
        f"{source.uri} has {rows} rows for the {wanted} training sequences of {sequences.store.uri}; give one row for "
        "each, in their order"
    )


def _refuse_isolated(sequence: Sequence) -> None:
    if sequence.isolated and len(sequence.documents) > 1:
        raise ValueError(
            f"it is of {len(sequence.documents)} documents that do not see one another, and a server reads a prompt as "
            "one text; prepare with corpus.packing concatenate or none"
        )


def _targets(lists: position_lists.Lists, sequence: Sequence, k: int, vocabulary: int) -> SoftTargets:
    """The k most probable ids of each scored position, and what is left of 1 as the tail.

    Raises `ValueError` for lists that are no part of a distribution over `vocabulary` ids.
    """
    positions = np.flatnonzero(sequence.loss_mask).tolist()
    ids = np.zeros((len(positions), k), np.int32)
    log_p = np.zeros((len(positions), k))
    for place, position in enumerate(positions):
        own = lists[position]
        if own is None:
            raise ValueError(f"position {position} carries loss and has no list; give one for each")
        given, values = np.array(own[0], np.int64), np.array(own[1], np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"position {position} has a logprob that is no finite number; mend it")
        if len(given) < k:
            raise ValueError(f"position {position} has {len(given)} ids; ask for {k}, or set targets.k={len(given)}")
        if given.min() < 0 or given.max() >= vocabulary:
            raise ValueError(
                f"position {position} has id {given.min() if given.min() < 0 else given.max()}, outside the teacher's "
                f"vocabulary of {vocabulary}; serve the teacher that the recipe names"
            )
        if len(np.unique(given)) < len(given):
            raise ValueError(f"position {position} has an id twice; mend it")
        mass = float(np.exp(values).sum())
        if mass > 1.0 + _OVER_ONE:
            raise ValueError(f"position {position} has a mass of {mass:.4g}, above 1; give natural logarithms at T = 1")
        order = np.argsort(-values, kind="stable")[:k]
        ids[place], log_p[place] = given[order], values[order]
    kept = np.exp(log_p).sum(axis=1)
    with np.errstate(divide="ignore"):
        odds = np.log(np.maximum(1.0 - kept, 0.0)) - np.log(kept)
    relative = (log_p - log_p[:, :1]).astype(np.float32)
    return SoftTargets(ids, relative, odds[:, None].astype(np.float32), (1.0,))
