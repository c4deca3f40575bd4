"""What a cache holds, finished or not, without decoding a shard: the fields of `dkd inspect`."""

from __future__ import annotations

from typing import Any

import numpy as np

from distributed_kd import console
from distributed_kd.cache.manifest import CacheManifest, read_entries
from distributed_kd.cache.receipts import Receipts
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardIndex


def missing_shards(manifest: CacheManifest, entries: ShardIndex) -> list[int]:
    """Numbers of the shards that the cache is to have and `entries` do not list."""
    is_missing = np.ones(manifest.shards, bool)
    is_missing[entries.shard[entries.shard < manifest.shards]] = False
    return list(np.flatnonzero(is_missing).tolist())


def inspect(uri: str) -> dict[str, Any]:
    """Raises `RequestError` when there is no cache at `uri`."""
    store = Store(uri)
    manifest = CacheManifest.read(store)
    if manifest is None:
        raise RequestError(f"{store.uri} holds no cache (no manifest.json)")
    return facts_of(store, manifest)


def facts_of(store: Store, manifest: CacheManifest) -> dict[str, Any]:
    """What `inspect` says of the cache in `store`, whose manifest this is."""
    if manifest.index is not None:
        with console.waiting(f"reading the index of {store.uri}"):
            entries = read_entries(store, manifest)
        parts, kept_mass, left_out = manifest.bytes_by_part, manifest.mean_kept_mass, manifest.left_out
    else:
        receipts = Receipts.read_all(store, manifest.fingerprint, manifest.shards)
        entries = receipts.entries
        parts, kept_mass, left_out = receipts.bytes_by_part, receipts.mean_kept_mass, receipts.left_out
    positions = int(entries.positions.sum())
    total = int(entries.bytes.sum())
    if manifest.tables is not None:
        parts = (parts or {}) | {"tables": manifest.tables.bytes}
        total += manifest.tables.bytes
    merged = {} if manifest.merge is None else {"merge": manifest.merge.model_dump(mode="json")}
    hidden = {} if manifest.hidden is None else {"hidden": manifest.hidden.model_dump(mode="json")}
    return {
        "positions": positions,
        "sequences": int(entries.rows.sum()),
        "shards": manifest.shards,
        "missing_shards": missing_shards(manifest, entries),
        "method": manifest.method,
        "k": manifest.k,
        "temperatures": manifest.temperatures,
        "bytes_total": total,
        "bytes_per_position": total / positions if positions else None,
        "bytes_by_part": parts,
        "mean_kept_mass": kept_mass,
        "codec": manifest.codec,
        "teacher": manifest.teacher,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "fingerprint": manifest.fingerprint,
        **({"left_out": left_out} if left_out else {}),
        **merged,
        **hidden,
    }
