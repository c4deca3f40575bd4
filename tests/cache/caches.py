"""Makers of small finished caches without a teacher: sequences of unequal length, some positions without loss."""

from __future__ import annotations

import numpy as np

from distributed_kd.cache import codecs, shard
from distributed_kd.cache.manifest import CacheManifest, Receipt, put_tables, totals
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.store.digest import fingerprint, sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, put_index, shard_name
from tests.cache.test_codec_compact import V, teacher

TEMPERATURES = (1.0, 2.0)
K = 6


def make_rows(first: int, count: int, k: int = K, longest: int = 14) -> list[Row]:
    """Sequences `first`, `first + 1`, ...: each of two documents; sequence 0 has no scored position."""
    rows = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        length = int(rng.integers(4, longest))
        ids = rng.integers(0, V, length).astype(np.int32)
        mask = (rng.random(length) < (0.7 if number else 0.0)) & (np.arange(length) < length - 1)
        runs = np.array([2, length - 2], np.int32)
        targets, _ = teacher(length, k, TEMPERATURES, seed=number)
        sequence = Sequence(number, ids, mask, np.array([2 * number, 2 * number + 1]), runs, isolated=True)
        rows.append(Row(sequence, targets[mask]))
    return rows


def make_cache(store: Store, codec: str, shards: int = 3, rows: int = 4, k: int = K) -> list[Row]:
    """Writes a finished cache with receipts; returns its rows as they were before they were encoded."""
    made_from = {"test": codec, "shards": shards}
    key = fingerprint(made_from)
    build = codecs.find(codec).build_tables
    tables = build(*teacher(400, k, TEMPERATURES, seed=99), V, 0) if build else None
    reference = put_tables(store, tables) if tables is not None else None
    everything, receipts = [], []
    for number in range(shards):
        own = make_rows(number * rows, rows, k)
        data, parts = shard.encode(own, codec, key, number, tables)
        store.put(shard_name(number), data)
        positions = sum(len(row.targets) for row in own)
        receipts.append(
            Receipt(key, ShardEntry(number, rows, positions, len(data), sha256(data)), parts, 0.5 * positions)
        )
        receipts[-1].put(store)
        everything += own
    parts, mass = totals(receipts)
    CacheManifest(
        made_from=made_from, fingerprint=key, codec=codec, teacher="none", revision=None, tokenizer_sha256="0" * 64,
        vocabulary_size=V, packing="isolate", method="top_k", k=k, temperatures=list(TEMPERATURES), shards=shards,
        tables=reference, index=put_index(store, [receipt.entry for receipt in receipts]), bytes_by_part=parts,
        mean_kept_mass=mass,
    ).put(store)  # fmt: skip
    return everything


def joined(rows: list[Row]) -> SoftTargets:
    return SoftTargets.concatenate([row.targets for row in rows])
