"""What a cache holds, finished or not, without decoding a shard: the fields of `dkd inspect`."""

from __future__ import annotations

from typing import Any

from distributed_kd.cache.manifest import CacheManifest, Receipt, read_entries, totals
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry


def missing_shards(manifest: CacheManifest, entries: list[ShardEntry]) -> list[int]:
    """Numbers of the shards that the cache is to have and `entries` do not list."""
    there = {entry.shard for entry in entries}
    return [shard for shard in range(manifest.shards) if shard not in there]


def inspect(uri: str) -> dict[str, Any]:
    """Raises `RequestError` when there is no cache at `uri`."""
    store = Store(uri)
    manifest = CacheManifest.read(store)
    if manifest is None:
        raise RequestError(f"{store.uri} holds no cache (no manifest.json)")
    if manifest.index is not None:
        entries = read_entries(store, manifest)
        parts, kept_mass = manifest.bytes_by_part, manifest.mean_kept_mass
    else:
        receipts = list(Receipt.read_all(store, manifest.fingerprint).values())
        entries = [receipt.entry for receipt in receipts]
        parts, kept_mass = totals(receipts)
    if manifest.tables is not None:
        parts = (parts or {}) | {"tables": manifest.tables.bytes}
    positions = sum(entry.positions for entry in entries)
    total = sum(entry.bytes for entry in entries)
    merged = {} if manifest.merge is None else {"merge": manifest.merge.model_dump(mode="json")}
    return {
        "positions": positions,
        "sequences": sum(entry.rows for entry in entries),
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
        **merged,
    }
