"""Writing a cache: shard by shard, each followed by its receipt, then the index and the manifest that names it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distributed_kd import console
from distributed_kd.cache import shard as shards
from distributed_kd.cache.manifest import CacheManifest, ErrorBound, Receipt, remove_leftovers
from distributed_kd.cache.receipts import Receipts
from distributed_kd.cache.shard import Row
from distributed_kd.store.digest import sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, put_index, shard_name


def put_rows(
    store: Store,
    manifest: CacheManifest,
    shard: int,
    rows: list[Row],
    tables: bytes | None = None,
    error_bound: ErrorBound | None = None,
    threads: int = 1,
    left_out: Sequence[int] = (),
) -> Receipt:
    """Encodes and writes one shard, then its receipt. tables: the bytes of the cache's code tables, where it has some.

    error_bound, left_out: see `Receipt`. threads: that encode.
    """
    data, parts = shards.encode(rows, manifest.codec, manifest.fingerprint, shard, tables, threads)
    store.put(shard_name(shard), data)
    positions = sum(len(row.targets) for row in rows)
    entry = ShardEntry(shard, len(rows), positions, len(data), sha256(data))
    receipt = Receipt(manifest.fingerprint, entry, parts, _kept_mass(rows), error_bound, list(left_out) or None)
    receipt.put(store)
    return receipt


def commit(store: Store, manifest: CacheManifest, receipts: Receipts) -> CacheManifest:
    """Writes the index of all shards from their receipts, then the manifest that names it: the cache is finished."""
    with console.waiting(f"writing the index of {store.uri}"):
        return _commit(store, manifest, receipts)


def _commit(store: Store, manifest: CacheManifest, receipts: Receipts) -> CacheManifest:
    remove_leftovers(store)
    if manifest.index is not None:  # committed anew: unfinished in between, so that no manifest names another index
        manifest = manifest.model_copy(update={"index": None, "bytes_by_part": None, "mean_kept_mass": None})
        manifest.put(store)
    committed = manifest.model_copy(
        update={
            "index": put_index(store, receipts.entries),
            "bytes_by_part": receipts.bytes_by_part,
            "mean_kept_mass": receipts.mean_kept_mass,
            "left_out": receipts.left_out or None,
        }
    )
    committed.put(store)
    return committed


def _kept_mass(rows: list[Row]) -> float:
    """Kept mass summed over positions, at the first temperature: sigmoid(-odds)."""
    return sum(float((1.0 / (1.0 + np.exp(row.targets.tail_odds[:, 0].astype(np.float64)))).sum()) for row in rows)
