"""The cache stage: replicas of the teacher over shard numbers.

One unit of work is one whole shard. A replica reads sequence shard `i`, runs the teacher, writes logit shard `i` and
then its receipt, and returns the receipt: logits never enter Ray's object store. The driver hands out the numbers that
have no receipt yet (`schedule.py`) to the replicas that the cluster has room for (`fleet.py`), and commits the manifest
when none is missing: a capture that died goes on where its receipts end. A codec with code tables has them made by one
replica before the first shard, from sequences spread evenly over the training shards: the manifest names their digest,
and so does every shard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from distributed_kd import console
from distributed_kd.cache import codecs
from distributed_kd.cache.hidden import HiddenStates
from distributed_kd.cache.manifest import CacheManifest, Receipt, made_from_of, refuse_not_captured, store_of
from distributed_kd.cache.receipts import Receipts
from distributed_kd.cache.writer import commit
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.errors import RequestError, WorkError
from distributed_kd.launch.ray_session import ray_session, task_errors
from distributed_kd.models.config import hidden_size, load_config, refuse_other_task, vocabulary_size
from distributed_kd.models.locate import identity, locate
from distributed_kd.models.tokenizer import inputs_sha256
from distributed_kd.recipe import Recipe, dump
from distributed_kd.store.digest import fingerprint
from distributed_kd.store.filesystem import Store
from distributed_kd.store.lease import lease
from distributed_kd.store.manifest import refuse_other
from distributed_kd.teacher.progress import Metrics, Progress
from distributed_kd.teacher.schedule import Schedule
from distributed_kd.teacher.spent import Spent

if TYPE_CHECKING:
    from distributed_kd.teacher.fleet import Fleet

# Bytes a kept id and a position take in the simple codec, measured at K = 64 on text; only to refuse a full disk.
_BYTES_A_KEPT_ID = 2.5
_BYTES_A_POSITION = 8.0

_POLL_SECONDS = 1.0
_FIT_SECONDS = 5.0  # between looks at whether the cluster has room for more replicas


def capture(recipe: Recipe, order: Callable[[str, np.ndarray], np.ndarray] | None = None) -> CacheManifest:
    """Writes `WORKDIR/cache`, or what is missing of it. Raises `RequestError` for a request that cannot be met.

    order: (the cache's fingerprint, rows [shards]) -> shards as they are wanted; by number if it is not given.
    """
    begun = time.monotonic()
    store = store_of(recipe)
    sequences = Sequences.of(recipe)
    entries = sequences.shards("train")
    found = CacheManifest.read(store)
    if found is not None:
        refuse_not_captured(found, store, "`dkd train` reads it as it is; to capture, choose another `workdir`")
    made_from = made_from_of(recipe, sequences.manifest.fingerprint, teacher_identity(recipe, found))
    if found is not None:
        refuse_other(found, made_from, store, "a cache")
        if found.index is not None:
            console.say(f"cache: done already ({store.uri}, fingerprint {found.fingerprint[:12]}), skipped")
            return found
        manifest = found
    else:
        manifest = new_manifest(recipe, sequences, made_from, len(entries))
        store.check_writable()
        _refuse_full_disk(store, recipe, manifest, int(entries.positions.sum()))
    positions = entries.positions.copy()
    wanted = np.arange(len(entries)) if order is None else order(manifest.fingerprint, entries.rows)
    del sequences, entries  # their digests are 100 bytes a shard, and no longer needed
    with lease(store, "dkd cache"):
        if found is None:
            store.put("recipe.yaml", dump(recipe).encode())
        receipts = Receipts.read_all(store, manifest.fingerprint, manifest.shards)
        with console.waiting(f"cache: folding the receipts of {store.uri}"):
            receipts.fold(store)
        missing = wanted[np.isin(wanted, receipts.missing)]
        if receipts:
            console.say(f"cache: {len(receipts)} of {manifest.shards} shards are there already; going on")
        needs_tables = manifest.tables is None and codecs.find(manifest.codec).build_tables is not None
        spent = Spent(store, begun)
        if missing.size or needs_tables:
            manifest = compute(recipe, manifest, positions, missing, receipts, make_tables=needs_tables, spent=spent)
        spent.keep()  # with Ray's stop; or without a replica, where only the commit was missing
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


def new_manifest(
    recipe: Recipe, sequences: Sequences, made_from: dict[str, Any], shard_count: int, weights: bool = True
) -> CacheManifest:
    """Of a cache that is to be made. Raises `RequestError` for a teacher that does not fit recipe or sequences.

    weights: whether the teacher's are needed as well, or its small files alone.
    """
    spec = recipe.teachers[0]
    folder = locate(spec.model, spec.revision, weights)
    config = load_config(folder)
    refuse_other_task(config, spec.model, recipe.corpus)
    vocabulary = vocabulary_size(config)
    if recipe.targets.keeps(vocabulary) > vocabulary:
        raise RequestError(f"targets.k {recipe.targets.k} is more than the {vocabulary} ids of teacher {spec.model}")
    teachers = inputs_sha256(folder)
    own = sequences.manifest.tokenizer
    if teachers != own.sha256:
        what = "features and classes are" if recipe.corpus.takes_features else "tokenizer is"
        raise RequestError(
            f"the teacher's {what} not the sequences': {spec.model} has {teachers[:12]}, "
            f"{own.name} has {own.sha256[:12]}; prepare with the teacher's"
        )
    classes = sequences.manifest.made_from.get("classes")
    if classes is not None and vocabulary != classes:
        raise RequestError(
            f"teacher {spec.model} has {vocabulary} classes and the sequences {classes}; choose teachers of as many, "
            "or prepare with this one's"
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
        hidden=hidden_states(recipe, config),
    )


def hidden_states(recipe: Recipe, config: Any) -> HiddenStates | None:
    """That the recipe keeps of a teacher with this configuration. Raises `RequestError` for a layer it has not."""
    hidden = recipe.targets.hidden
    if hidden is None:
        return None
    layers = int(config.get_text_config().num_hidden_layers)
    if not -layers - 1 <= hidden.layer <= layers:
        raise RequestError(
            f"targets.hidden.layer {hidden.layer} is not of teacher {recipe.teachers[0].model}, whose hidden states "
            f"are 0 (the embeddings) to {layers}"
        )
    return HiddenStates(layer=hidden.layer, dtype=hidden.dtype, width=hidden_size(config))


def _refuse_full_disk(store: Store, recipe: Recipe, manifest: CacheManifest, positions: int) -> None:
    planned, free = bytes_needed(positions, manifest.k, manifest.hidden), store.free_bytes()
    if free is not None and free < planned:
        raise RequestError(
            f"workdir {recipe.workdir} has {free / 1e9:.2f} GB free and the cache needs about {planned / 1e9:.2f} GB "
            f"({positions:,} positions at K = {manifest.k}); free some, or choose another `workdir` or K"
        )


def bytes_needed(positions: int, k: int, hidden: HiddenStates | None) -> int:
    """By a cache of so many positions, about: what a disk must have to begin one, before any target is known."""
    of_hidden = 0 if hidden is None else hidden.bytes_per_position
    return int(positions * (k * _BYTES_A_KEPT_ID + _BYTES_A_POSITION + of_hidden))


def compute(
    recipe: Recipe,
    manifest: CacheManifest,
    positions: np.ndarray,
    missing: np.ndarray,
    receipts: Receipts,
    *,
    make_tables: bool,
    spent: Spent | None = None,
) -> CacheManifest:
    """Captures the missing shards in their order, adding to `receipts`; `positions` are those of every training shard.

    make_tables: make the codec's code tables first; those that the manifest names already, if it does. A manifest that
    is not yet in the store is written before the first shard; what all this takes is told to `spent`. Returns the
    manifest with its code tables. Raises `RequestError` where the teacher is refused, `WorkError` naming the shards
    that were set aside, when everything else is written.
    """
    with ray_session(recipe.capture.address) as cluster, task_errors():
        from distributed_kd.teacher.fleet import Fleet

        fleet = Fleet(recipe, cluster)
        fleet.fit(len(missing))
        if make_tables:
            with console.waiting(f"cache: making the code tables of {manifest.codec} from a sample"):
                tables = fleet.make_tables(range(manifest.shards), manifest.tables)
            manifest = manifest.model_copy(update={"tables": tables})
        store = store_of(recipe)
        if CacheManifest.read(store) != manifest:
            manifest.put(store)
        schedule = Schedule(missing)
        left, total = int(positions[missing].sum()), int(positions.sum())
        progress = Progress(manifest.shards, total, manifest.shards - len(missing), total - left)
        metrics = Metrics(store.uri)
        with console.progress("cache", left) as advance:
            for receipt in run(fleet, schedule, manifest):
                progress.replicas, progress.failures = fleet.size, schedule.failures
                if receipt is not None:
                    receipts[receipt.entry.shard] = receipt
                    receipts.fold(store)
                    progress.add(receipt)
                advance(progress.positions_of_run, progress.note())
                metrics.show(progress)
                if spent is not None:
                    spent.so_far(fleet.device_seconds)
        if spent is not None:
            spent.in_all(fleet.device_seconds, fleet.peak_memory_bytes())
        if schedule.set_aside:
            lines = "; ".join(f"shard {shard}: {why}" for shard, why in sorted(schedule.set_aside.items())[:5])
            raise WorkError(
                f"{len(schedule.set_aside)} of {len(missing)} shards were set aside, the others are written ({lines}); "
                "mend the cause and run the same command"
            )
        return manifest


def run(fleet: Fleet, schedule: Schedule, manifest: CacheManifest) -> Iterator[Receipt | None]:
    """Gives shards to replicas until none is left, whatever becomes of them meanwhile.

    Yields receipts as they come, and None now and then when none came, for the caller to look around.

    Raises `WorkError` when replicas are lost one after the other and nothing is finished in between.
    """
    fitted = time.monotonic()
    while not schedule.is_done:
        if time.monotonic() - fitted > _FIT_SECONDS:
            fleet.fit(schedule.waiting + sum(map(len, schedule.in_work.values())))
            fitted = time.monotonic()
        for replica in fleet.with_room(schedule.waiting):
            shard = schedule.give(replica)
            if shard is not None:
                fleet.give(replica, shard, manifest)
        for event in fleet.wait(_POLL_SECONDS):
            if event.shard is None:
                lost = schedule.lose(event.replica, event.value)
                having = f" with shard {' and '.join(map(str, lost))}" if lost else ""
                console.say(f"cache: {event.replica} was lost{having}: {event.value}")
                if schedule.is_hopeless(fleet.placed):
                    raise WorkError(
                        f"{schedule.lost_in_a_row} replicas were lost one after the other, the last: {event.value}; "
                        "what is written stays good: mend the cause and run the same command"
                    )
            elif event.kind == "failed":
                schedule.fail(event.replica, event.shard, event.value)
                console.say(f"cache: shard {event.shard} failed: {event.value}")
            else:
                schedule.finish(event.replica, event.shard)
                yield event.value
        yield None
