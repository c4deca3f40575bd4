"""Makers of small finished caches without a teacher: sequences of unequal length, some positions without loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from distributed_kd.cache import codecs, shard
from distributed_kd.cache.hidden import HiddenStates
from distributed_kd.cache.manifest import CacheManifest, Receipt, put_tables
from distributed_kd.cache.receipts import Receipts
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.store.digest import fingerprint, sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, put_index, shard_name
from distributed_kd.teacher.targets import full, sample, top_k
from tests.cache.test_codec_compact import V, teacher

TEMPERATURES = (1.0, 2.0)
K = 6


DRAWS = 9
WIDTH = 12  # of hidden states


def targets_of(method: str, positions: int, seed: int, k: int = K) -> tuple[SoftTargets, np.ndarray]:
    """(targets of a made-up teacher by each method, tokens). Drawn ids are at T = 1, weighted ones at both."""
    if method == "top_k":
        return teacher(positions, k, TEMPERATURES, seed=seed)
    whole, tokens = teacher(positions, V, TEMPERATURES, seed=seed)
    ids = torch.from_numpy(whole.ids.astype(np.int64))
    logits = torch.zeros(positions, V).scatter_(1, ids, torch.from_numpy(whole.logits))
    if method == "top_p":
        return top_k(logits, k, TEMPERATURES, p=0.8).to_host(), tokens
    if method == "full":
        return full(logits, TEMPERATURES).to_host(), tokens
    numbers = np.random.default_rng(seed).random((positions, DRAWS))
    return sample(logits, numbers, (1.0,) if method == "sample" else TEMPERATURES, drawn_at=1.0).to_host(), tokens


def hidden_of(positions: int, dtype: str, seed: int) -> np.ndarray:
    """[positions, WIDTH] as `cache/hidden.py` carries the dtype."""
    states = torch.randn(positions, WIDTH, generator=torch.Generator().manual_seed(seed)).to(getattr(torch, dtype))
    return (states.view(torch.uint16) if dtype == "bfloat16" else states).numpy()


def make_rows(
    first: int, count: int, k: int = K, longest: int = 14, method: str = "top_k", hidden: str | None = None
) -> list[Row]:
    """Sequences `first`, `first + 1`, ...: each of two documents; sequence 0 has no scored position."""
    rows = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        length = int(rng.integers(4, longest))
        ids = rng.integers(0, V, length).astype(np.int32)
        mask = (rng.random(length) < (0.7 if number else 0.0)) & (np.arange(length) < length - 1)
        runs = np.array([2, length - 2], np.int32)
        targets, _ = targets_of(method, length, number, k)
        targets = targets if hidden is None else replace(targets, hidden=hidden_of(length, hidden, number))
        sequence = Sequence(number, ids, mask, np.array([2 * number, 2 * number + 1]), runs, isolated=True)
        rows.append(Row(sequence, targets[mask]))
    return rows


def make_cache(
    store: Store,
    codec: str,
    shards: int = 3,
    rows: int = 4,
    k: int = K,
    method: str = "top_k",
    hidden: Any = None,
) -> list[Row]:
    """Writes a finished cache with receipts; returns its rows as they were before they were encoded."""
    made_from = {"test": codec, "shards": shards} | ({} if method == "top_k" else {"method": method})
    key = fingerprint(made_from)
    build = codecs.find(codec).build_tables
    draws = DRAWS if method == "sample" else 0
    tables = build(*targets_of(method, 400, 99, k), V, draws) if build else None
    reference = put_tables(store, tables) if tables is not None else None
    everything, receipts = [], Receipts(key, shards)
    for number in range(shards):
        own = make_rows(number * rows, rows, k, method=method, hidden=hidden)
        data, parts = shard.encode(own, codec, key, number, tables)
        store.put(shard_name(number), data)
        positions = sum(len(row.targets) for row in own)
        entry = ShardEntry(number, rows, positions, len(data), sha256(data))
        receipts[number] = Receipt(key, entry, parts, 0.5 * positions)
        receipts[number].put(store)
        everything += own
    width = {"top_k": k, "top_p": k, "full": V}.get(method, DRAWS)
    temperatures = everything[0].targets.temperatures
    CacheManifest(
        made_from=made_from, fingerprint=key, codec=codec, teacher="none", revision=None, tokenizer_sha256="0" * 64,
        vocabulary_size=V, packing="isolate", method="sample" if method == "weighted" else method, k=width,  # type: ignore
        temperatures=list(temperatures), shards=shards,
        tables=reference, index=put_index(store, receipts.entries), bytes_by_part=receipts.bytes_by_part,
        mean_kept_mass=receipts.mean_kept_mass,
        hidden=None if hidden is None else HiddenStates(layer=-1, dtype=hidden, width=WIDTH),
    ).put(store)  # fmt: skip
    return everything


def joined(rows: list[Row]) -> SoftTargets:
    return SoftTargets.concatenate([row.targets for row in rows])
