"""Whether every byte of a cache is right: digests first, then a full decode, many shards at once.

A digest says that a shard is what its writer wrote; decoding it says that the writer wrote what belongs there. An
unfinished cache is checked by its receipts, and what has none is missing. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from distributed_kd import console
from distributed_kd.cache import codecs, hidden
from distributed_kd.cache.codecs import tables as code_tables
from distributed_kd.cache.inspect import missing_shards
from distributed_kd.cache.manifest import TABLES_NAME, CacheManifest, read_entries, read_tables
from distributed_kd.cache.processes import processors, unordered
from distributed_kd.cache.reader import read_rows
from distributed_kd.cache.receipts import Receipts
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import NO_ID
from distributed_kd.corpus.sequences import NO_LABEL
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import INDEX_NAME, IndexReference, ShardEntry, ShardIndex, read_known, shard_name

_BYTES_A_PROCESS = 16 << 20  # a process takes seconds to start; this is what one checks meanwhile


@dataclass(frozen=True)
class Bad:
    """A shard that is not good, its file, and why in one line. Files that are no shard have `shard` -1."""

    shard: int
    file: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """`missing` are numbers of shards that no receipt or no file is there of; they are not among `bad`."""

    shards: int
    good: int
    bad: list[Bad]
    missing: list[int]
    bytes: int
    seconds: float

    @property
    def all_good(self) -> bool:
        return not self.bad and not self.missing

    def facts(self) -> dict[str, Any]:
        """What `dkd verify --json` prints."""
        rate = round(self.bytes / 1e6 / max(self.seconds, 1e-9), 3)
        return asdict(self) | {"megabytes_per_second": rate}


def verify(uri: str | Store, jobs: int | None = None) -> Verdict:
    """Checks everything under `uri` with `jobs` processes (None: one a processor, where there is work for them).

    Raises `RequestError` when there is no cache, or no manifest by which it could be checked.
    """
    store = uri if isinstance(uri, Store) else Store(uri)
    manifest = CacheManifest.read(store)
    if manifest is None:
        raise RequestError(f"{store.uri} holds no cache (no manifest.json)")
    begun = time.monotonic()
    bad: list[Bad] = []
    entries = listed_entries(store, manifest, bad)
    tables_are_good = _tables_are_good(store, manifest, bad)
    missing = missing_shards(manifest, entries)
    bad_files = len(bad)
    done = read = 0
    total = int(entries.bytes.sum())
    with console.progress("verify", total) as advance:
        jobs = jobs or min(processors(), 1 + total // _BYTES_A_PROCESS)
        for entry, found in _results(store, manifest, entries, tables_are_good, jobs):
            done, read = done + 1, read + entry.bytes
            if found is None:
                missing.append(entry.shard)
            elif found:
                bad.append(Bad(entry.shard, shard_name(entry.shard), found))
            seconds = max(time.monotonic() - begun, 1e-9)
            advance(read, f"{read / 1e6 / seconds:,.1f} MB/s, {done / seconds:,.1f} shards/s")
    good = len(entries) - (len(bad) - bad_files) - (len(missing) - (manifest.shards - len(entries)))
    bad.sort(key=lambda one: (one.shard, one.file))
    return Verdict(manifest.shards, good, bad, sorted(missing), total, time.monotonic() - begun)


def listed_entries(store: Store, manifest: CacheManifest, bad: list[Bad]) -> ShardIndex:
    """What the cache says its shards are: by its index, or by receipts where it has none that is good.

    An index that is not good is added to `bad`.
    """
    if manifest.index is not None:
        try:
            return read_entries(store, manifest)
        except RequestError as error:
            bad.append(Bad(-1, INDEX_NAME, str(error)))
    return Receipts.read_good(store, manifest.fingerprint, manifest.shards).entries


def check_shard(store: Store, manifest: CacheManifest, entry: ShardEntry, tables: bytes | None) -> list[Row]:
    """The shard's rows, read as any reader does, and what its writer can have got wrong behind a right digest checked.

    Raises `RequestError` saying what is not good.
    """
    rows = read_rows(store, manifest, entry, tables)
    for row in rows:
        _check_row(row, manifest, entry.shard)
    return rows


def _check_row(row: Row, manifest: CacheManifest, shard: int) -> None:
    targets, vocabulary = row.targets, manifest.vocabulary_size
    where = f"shard {shard}, sequence {row.sequence.sequence_id}:"
    input_ids = row.sequence.input_ids
    if input_ids.min(initial=0) < 0 or input_ids.max(initial=0) >= vocabulary:
        raise RequestError(f"{where} an input id is not of a vocabulary of {vocabulary}")
    labels = row.sequence.given_labels
    labels = None if labels is None else labels[labels != NO_LABEL]
    if labels is not None and (labels.min(initial=0) < 0 or labels.max(initial=0) >= vocabulary):
        raise RequestError(f"{where} a label is not of a vocabulary of {vocabulary}")
    kept = targets.ids != NO_ID
    if targets.ids.max(initial=0) >= vocabulary or targets.ids.min(initial=0) < NO_ID:
        raise RequestError(f"{where} a kept id is not of a vocabulary of {vocabulary}")
    if targets.ids.shape[1] > manifest.k:
        raise RequestError(f"{where} {targets.ids.shape[1]} ids are kept a position; the manifest says {manifest.k}")
    if not (targets.logits <= 0).all() or (~kept & ~np.isneginf(targets.logits)).any():  # NaN is not below anything
        raise RequestError(f"{where} a logit is not a number, or above the largest")
    if not (targets.logits.max(axis=1, initial=-np.inf) == 0).all():
        raise RequestError(f"{where} a position keeps nothing, or nothing at its largest logit")
    if not (targets.tail_odds < np.inf).all():  # -inf is a tail of nothing; NaN is not below anything
        raise RequestError(f"{where} tail odds are not numbers")
    if targets.log_p is not None:
        log_p, is_kept = targets.log_p, np.broadcast_to(kept[:, None], targets.log_p.shape)
        if not (log_p < np.inf).all() or not np.isneginf(log_p[~is_kept]).all():
            raise RequestError(f"{where} a log-probability is not a number, or is of an id that is not kept")
    if targets.hidden is not None and not hidden.are_finite(targets.hidden).all():
        raise RequestError(f"{where} a hidden state is not of finite numbers")
    fill = -1 - np.arange(targets.ids.shape[1], dtype=np.int32)  # so that what is not kept is not the same twice
    ordered = np.sort(np.where(kept, targets.ids, fill), axis=1)
    if (np.diff(ordered, axis=1) == 0).any():
        raise RequestError(f"{where} a position keeps an id twice")


def _tables_are_good(store: Store, manifest: CacheManifest, bad: list[Bad]) -> bool:
    """Whether shards can be decoded; why not is added to `bad`."""
    try:
        codec = codecs.find(manifest.codec)
        data = read_tables(store, manifest.tables)
        if (data is None) != (codec.build_tables is None):
            raise RequestError(
                f"{manifest.codec} {'needs' if data is None else 'has no'} code tables; repair the cache"
            )
        if data is not None:
            code = code_tables.parse(data)
            found = (code.width, code.vocabulary_size, list(code.temperatures))
            if found != (manifest.k, manifest.vocabulary_size, manifest.temperatures):
                raise RequestError(f"{TABLES_NAME} is of K, vocabulary and temperatures {found}; the manifest is not")
    except (RequestError, ValueError) as error:
        bad.append(Bad(-1, TABLES_NAME, str(error)))
        return False
    return True


def _results(
    store: Store, manifest: CacheManifest, entries: ShardIndex, decode: bool, jobs: int
) -> Iterator[tuple[ShardEntry, str | None]]:
    """(shard, "" where it is good, None where its file is not there, else why it is not good), as they come."""
    check: Callable[[ShardEntry], str | None] = _Check(store, manifest, decode)
    return unordered(check, entries, max(1, min(jobs, len(entries))))


@dataclass(frozen=True)
class _Check:
    """What a process does to a shard; it travels with each, and the code tables are read once a process."""

    store: Store
    manifest: CacheManifest
    decode: bool

    def __call__(self, entry: ShardEntry) -> str | None:
        try:
            if self.decode:
                check_shard(self.store, self.manifest, entry, tables_of(self.store.uri, self.manifest.tables))
            else:
                read_known(self.store, shard_name(entry.shard), entry, "repair the cache")
        except RequestError as error:
            return None if isinstance(error.__cause__, FileNotFoundError) else str(error)
        return ""


@lru_cache(maxsize=16)
def tables_of(uri: str, reference: IndexReference | None) -> bytes | None:
    """`read_tables`, once a process for each cache."""
    return read_tables(Store(uri), reference)
