"""The cache stage: Ray actors over shard numbers.

One unit of work is one whole shard. The actor reads sequence shard `i`, runs the teacher, writes logit shard `i`
and then its receipt, and returns the receipt: logits never enter Ray's object store. The driver hands out the
numbers that have no receipt yet and commits the manifest when none is missing, so a capture that died goes on
where its receipts end. A codec with code tables has them made by one replica before the first shard, from sequences
spread evenly over the training shards: the manifest names their digest, and so does every shard.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from distributed_kd import console
from distributed_kd.cache import codecs
from distributed_kd.cache.manifest import (
    FOLDER,
    CacheManifest,
    Receipt,
    made_from_of,
    put_tables,
    read_tables,
    refuse_merged,
)
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.cache.writer import commit, put_rows
from distributed_kd.corpus.sequences import Sequence, Sequences
from distributed_kd.errors import RequestError, WorkError
from distributed_kd.launch.ray_session import ray_session, task_errors
from distributed_kd.models.config import load_config, vocabulary_size
from distributed_kd.models.locate import identity, locate
from distributed_kd.models.tokenizer import load_tokenizer, tokenizer_sha256
from distributed_kd.recipe import Recipe, dump
from distributed_kd.store.digest import fingerprint, sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import IndexReference, ShardEntry, ShardIndex
from distributed_kd.store.manifest import Run, peak_memory_bytes, refuse_other

if TYPE_CHECKING:
    from distributed_kd.teacher.forward import TeacherForward

# Bytes a kept id and a position take in the simple codec, measured at K = 64 on text; only to refuse a full disk.
_BYTES_A_KEPT_ID = 2.5
_BYTES_A_POSITION = 8.0

# Code tables are made from at least so many shards, where there are as many, so that the sample is no one corner.
_TABLE_SHARDS = 16


def capture(recipe: Recipe) -> CacheManifest:
    """Writes `WORKDIR/cache`, or what is missing of it. Raises `RequestError` for a request that cannot be met."""
    begun = time.monotonic()
    workdir = Store(recipe.workdir)
    store = workdir.child(FOLDER)
    sequences = Sequences.of(recipe)
    entries = sequences.shards("train")
    found = CacheManifest.read(store)
    if found is not None:
        refuse_merged(found, store, "`dkd train` reads it as it is; to capture, choose another `workdir`")
    made_from = made_from_of(recipe, sequences.manifest.fingerprint, teacher_identity(recipe, found))
    if found is not None:
        refuse_other(found, made_from, store, "a cache")
        if found.index is not None:
            console.say(f"cache: done already ({store.uri}, fingerprint {found.fingerprint[:12]}), skipped")
            return found
        manifest = found
    else:
        manifest = _new_manifest(recipe, sequences, made_from, len(entries))
        store.check_writable()
        _refuse_full_disk(store, recipe, manifest.k, sum(entry.positions for entry in entries))
        store.put("recipe.yaml", dump(recipe).encode())

    receipts = Receipt.read_all(store, manifest.fingerprint)
    missing = [entry for entry in entries if entry.shard not in receipts]
    if len(missing) < len(entries):
        console.say(f"cache: {len(receipts)} of {len(entries)} shards are there already; going on")
    peak = peak_memory_bytes()
    needs_tables = manifest.tables is None and codecs.find(manifest.codec).build_tables is not None
    if missing or needs_tables:
        manifest, peak = compute(recipe, manifest, entries, missing, receipts, make_tables=needs_tables)
    Run(time.monotonic() - begun, peak).put(store)
    return commit(store, manifest, receipts)


def teacher_identity(recipe: Recipe, found: CacheManifest | None) -> dict[str, str]:
    """Of the teacher's files; of the finished cache where the teacher is no longer on disk."""
    spec = recipe.teachers[0]
    try:
        return identity(locate(spec.model, spec.revision))
    except RequestError:
        if found is None or found.index is None:
            raise
        return found.teacher_identity


def _new_manifest(recipe: Recipe, sequences: Sequences, made_from: dict[str, Any], shard_count: int) -> CacheManifest:
    spec = recipe.teachers[0]
    folder = locate(spec.model, spec.revision)
    vocabulary = vocabulary_size(load_config(folder))
    if recipe.targets.keeps(vocabulary) > vocabulary:
        raise RequestError(f"targets.k {recipe.targets.k} is more than the {vocabulary} ids of teacher {spec.model}")
    teacher_tokenizer = tokenizer_sha256(load_tokenizer(folder))
    own = sequences.manifest.tokenizer
    if teacher_tokenizer != own.sha256:
        raise RequestError(
            f"the teacher's tokenizer is not the sequences': {spec.model} has {teacher_tokenizer[:12]}, "
            f"{own.name} has {own.sha256[:12]}; prepare with the teacher's tokenizer"
        )
    return CacheManifest(
        made_from=made_from,
        fingerprint=fingerprint(made_from),
        codec=recipe.capture.codec,
        teacher=spec.model,
        revision=spec.revision,
        tokenizer_sha256=own.sha256,
        vocabulary_size=vocabulary,
        packing=sequences.manifest.packing,
        method=recipe.targets.method,
        k=recipe.targets.keeps(vocabulary),
        temperatures=recipe.targets.temperatures,
        shards=shard_count,
        index=None,
    )


def _refuse_full_disk(store: Store, recipe: Recipe, k: int, positions: int) -> None:
    planned = int(positions * (k * _BYTES_A_KEPT_ID + _BYTES_A_POSITION))
    free = store.free_bytes()
    if free is not None and free < planned:
        raise RequestError(
            f"workdir {recipe.workdir} has {free / 1e9:.2f} GB free and the cache needs about {planned / 1e9:.2f} GB "
            f"({positions:,} positions at K = {k}); free some, or choose another `workdir` or K"
        )


def compute(
    recipe: Recipe,
    manifest: CacheManifest,
    entries: ShardIndex,
    missing: list[ShardEntry],
    receipts: dict[int, Receipt],
    *,
    make_tables: bool,
) -> tuple[CacheManifest, int]:
    """Captures the missing shards out of all training `entries`, adding to `receipts`.

    make_tables: make the codec's code tables first; those that the manifest names already, if it does. A manifest that
    is not yet in the store is written before the first shard. Returns the manifest with its code tables, and the
    replicas' peak memory in bytes. Raises `RequestError` where a replica refuses, `WorkError` where one fails.
    """
    import ray
    from ray.util import ActorPool

    with ray_session(recipe.capture.address), task_errors():
        count, resources = _replicas(recipe, len(missing))
        # Ray starts a replica again when its process dies, and gives it its shard again; an error is not retried.
        actor = ray.remote(**resources, max_restarts=3, max_task_retries=3)(Replica)
        replicas: list[Any] = [actor.remote(recipe) for _ in range(count)]
        if make_tables:
            console.say(f"cache: making the code tables of {manifest.codec} from a sample")
            tables = ray.get(replicas[0].make_tables.remote([entry.shard for entry in entries], manifest.tables))
            manifest = manifest.model_copy(update={"tables": tables})
        store = Store(recipe.workdir).child(FOLDER)
        if CacheManifest.read(store) != manifest:
            manifest.put(store)
        shards_done = ActorPool(replicas).map_unordered(
            lambda replica, shard: replica.capture.remote(shard, manifest), [entry.shard for entry in missing]
        )
        positions, written, begun = 0, 0, time.monotonic()
        with console.progress("cache", sum(entry.positions for entry in missing)) as advance:
            for receipt in shards_done:
                receipts[receipt.entry.shard] = receipt
                positions += receipt.entry.positions
                written += receipt.entry.bytes
                rate = positions / (time.monotonic() - begun)
                advance(positions, f"{rate:,.0f} positions/s, {written / positions:.0f} bytes a position")
        return manifest, max(ray.get([replica.peak_memory_bytes.remote() for replica in replicas]))


def _replicas(recipe: Recipe, work: int) -> tuple[int, dict[str, Any]]:
    """How many replicas, and what each asks of Ray: a GPU each where there are any, else `threads` processors.

    The number of threads is the recipe's and not a share of the machine: sums over other numbers of threads differ
    in their last bits, and a shard's bytes must not depend on how many replicas there were.
    """
    import ray

    available = ray.cluster_resources()
    gpus, processors = int(available.get("GPU", 0)), int(available.get("CPU", 1))
    wanted, threads = recipe.capture.replicas, min(recipe.capture.threads, processors)
    # A replica that Ray has no place for would wait, with its shard, for ever.
    fitting = gpus or processors // threads
    if isinstance(wanted, int) and wanted > fitting:
        console.say(f"cache: {wanted} replicas are asked for and {fitting} fit the cluster; going on with {fitting}")
    count = min(max(1, work), wanted if isinstance(wanted, int) else fitting, fitting)
    return count, {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": threads}


class Replica:
    """Ray actor: one copy of the teacher, loaded with the first shard, so that a refusal reaches the driver."""

    def __init__(self, recipe: Recipe) -> None:
        workdir = Store(recipe.workdir)
        self.recipe = recipe
        self.store = workdir.child(FOLDER)
        self.sequences = Sequences.of(recipe)
        self.tables: bytes | None = None

    @cached_property
    def teacher(self) -> TeacherForward:
        import torch

        from distributed_kd.teacher.forward import TeacherForward

        torch.set_num_threads(self.recipe.capture.threads)
        return TeacherForward(self.recipe.teachers[0], self.recipe.targets, self.recipe.capture)

    def make_tables(self, train_shards: list[int], known: IndexReference | None) -> IndexReference:
        """Writes the code tables of the recipe's codec, made from a sample of the training sequences.

        Raises `WorkError`, and writes nothing, when they are not the `known` ones that shards were written with.
        """
        build = codecs.find(self.recipe.capture.codec).build_tables
        assert build is not None  # the driver asks only then
        sample = self._sample(train_shards, self.recipe.capture.table_positions)
        targets = SoftTargets.concatenate(self.teacher(sample))
        tokens = np.concatenate([sequence.input_ids[sequence.loss_mask] for sequence in sample])
        try:
            data = build(targets, tokens, self.teacher.vocabulary_size, self.recipe.targets.draws or 0)
        except ValueError as error:
            raise RequestError(f"no code tables of {self.recipe.capture.codec} for these targets: {error}") from error
        if known is not None and (len(data), sha256(data)) != (known.bytes, known.sha256):
            raise WorkError(
                f"the code tables made here are not those that {self.store.uri} was written with (another device or "
                "version of torch?); repair it where it was captured, or delete it to capture it again"
            )
        return put_tables(self.store, data)

    def _sample(self, train_shards: list[int], positions: int) -> list[Sequence]:
        """Sequences of about so many positions in all: whole shards spread evenly, then every so-manyth sequence."""
        total = self.sequences.manifest.splits["train"].positions
        wanted = min(positions, total)
        count = min(len(train_shards), max(1, -(-wanted * len(train_shards) // total), _TABLE_SHARDS))
        places = np.linspace(0, len(train_shards) - 1, count).round().astype(int)
        read = [sequence for place in places for sequence in self.sequences.read(train_shards[place])]
        step = max(1, sum(sequence.positions for sequence in read) // wanted)
        return read[::step]

    def capture(self, shard: int, manifest: CacheManifest) -> Receipt:
        """One shard: read, run, encode, write, then the receipt."""
        if self.tables is None:
            self.tables = read_tables(self.store, manifest.tables)
        sequences = self.sequences.read(shard)
        targets = self.teacher(sequences)
        rows = [Row(sequence, own) for sequence, own in zip(sequences, targets, strict=True)]
        return put_rows(self.store, manifest, shard, rows, self.tables)

    def peak_memory_bytes(self) -> int:
        return peak_memory_bytes()
