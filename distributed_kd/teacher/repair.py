"""Repair: what a cache has lost is computed again, and nothing else is touched.

Everything that can be lost follows from the sequences and the teacher: a shard's bytes, the code tables made from a
sample, and the index from receipts. So a repaired cache is the original, byte by byte, on the same kind of device; on
another one a shard may differ in its last bits, and then the index is written anew to say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distributed_kd import console
from distributed_kd.cache.manifest import (
    TABLES_NAME,
    CacheManifest,
    made_from_of,
    refuse_not_captured,
    remove_leftovers,
    store_of,
)
from distributed_kd.cache.receipts import Receipts
from distributed_kd.cache.verify import Bad, listed_entries, verify
from distributed_kd.cache.writer import commit
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.errors import RequestError, WorkError
from distributed_kd.launch.stop import stopped_by_sigterm
from distributed_kd.recipe import Recipe
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import INDEX_NAME
from distributed_kd.store.lease import lease
from distributed_kd.store.manifest import refuse_other
from distributed_kd.teacher.capture import compute, teacher_identity


@dataclass(frozen=True)
class Repaired:
    """`shards` were computed again; `tables`, `index` and `changed` say what else was written.

    `changed` are recomputed shards that are not, byte by byte, what the index said they were.
    """

    shards: list[int]
    tables: bool
    index: bool
    changed: list[int]
    fingerprint: str

    def facts(self) -> dict[str, Any]:
        """What `dkd repair --json` prints."""
        return {
            "recomputed_shards": self.shards, "recomputed_tables": self.tables, "rewritten_index": self.index,
            "changed_shards": self.changed, "fingerprint": self.fingerprint,
        }  # fmt: skip


def repair(recipe: Recipe) -> Repaired:
    """Verifies `WORKDIR/cache` and computes again what is bad or missing; an unfinished cache is finished.

    Raises `RequestError` when there is no cache or it is another recipe's, `WorkError` when it cannot be made whole.
    """
    store = store_of(recipe)
    sequences = Sequences.of(recipe)
    manifest = CacheManifest.read(store)
    if manifest is None:
        raise RequestError(f"{store.uri} holds no cache to repair; run `dkd cache`")
    command = "merge" if manifest.merge is not None else "import"
    refuse_not_captured(manifest, store, f"no teacher can repair it: delete it and run `dkd {command}` again")
    refuse_other(
        manifest,
        made_from_of(recipe, sequences.manifest.fingerprint, teacher_identity(recipe, manifest)),
        store,
        "a cache",
    )

    remove_leftovers(store)
    with lease(store, "dkd repair"), stopped_by_sigterm():
        return _repair(recipe, store, manifest, sequences)


def _repair(recipe: Recipe, store: Store, manifest: CacheManifest, sequences: Sequences) -> Repaired:
    found = verify(store)
    for one in found.bad:
        console.say(f"repair: {one.file}: {one.reason}")
    lost = {one.shard for one in found.bad if one.shard >= 0} | set(found.missing)
    lost_files = {one.file for one in found.bad if one.shard < 0}
    if manifest.index is not None and found.all_good:
        console.say(f"repair: every byte of {store.uri} is right; nothing to do")
        return Repaired([], False, False, [], manifest.fingerprint)

    unread: list[Bad] = []
    known = {entry.shard: entry for entry in listed_entries(store, manifest, unread)}
    index_is_good = manifest.index is not None and INDEX_NAME not in lost_files
    receipts = Receipts.read_good(store, manifest.fingerprint, manifest.shards)
    for shard, receipt in receipts.items():
        if known.get(shard) != receipt.entry or shard in lost:
            del receipts[shard]
    if lost or TABLES_NAME in lost_files:
        console.say(f"repair: computing {len(lost)} of {manifest.shards} shards again")
        positions, missing = sequences.shards("train").positions, np.array(sorted(lost), np.int64)
        compute(recipe, manifest, positions, missing, receipts, make_tables=TABLES_NAME in lost_files)

    changed = [shard for shard in sorted(lost) if shard in known and receipts[shard].entry != known[shard]]
    if index_is_good and not changed:
        return Repaired(sorted(lost), TABLES_NAME in lost_files, False, [], manifest.fingerprint)
    if len(receipts) < manifest.shards:
        raise WorkError(
            f"shards {changed[:5]} came out otherwise than the index of {store.uri} says, which cannot be written "
            "anew without the receipts of all shards; repair it where it was captured, or delete it to capture it again"
        )
    commit(store, manifest, receipts)
    return Repaired(sorted(lost), TABLES_NAME in lost_files, True, changed, manifest.fingerprint)
