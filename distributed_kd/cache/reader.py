"""Opening a cache and reading it by sequence, from this package or from any other code."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from distributed_kd.cache import hidden
from distributed_kd.cache import shard as shards
from distributed_kd.cache.manifest import CacheManifest, read_entries, read_tables
from distributed_kd.cache.shard import Row
from distributed_kd.errors import RequestError
from distributed_kd.store.arrow import table_of
from distributed_kd.store.digest import differences
from distributed_kd.store.disk_cache import DiskCache
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, ShardIndex, read_known, shard_name

_SHARDS_HELD = 4
_REMEDY = "repair the cache"


class LogitCache:
    """A finished cache: `len(cache)` sequences, `cache[i]` a `Row`, every byte checked against its digest when read."""

    def __init__(self, store: Store, manifest: CacheManifest, entries: ShardIndex, tables: bytes | None = None) -> None:
        self.store = store
        self.manifest = manifest
        self.entries = entries
        self.tables = tables
        self._table = lru_cache(_SHARDS_HELD)(lambda place: self.table(place))

    def __len__(self) -> int:
        return int(self.entries.ends[-1])

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def inputs_sha256(self) -> str:
        """Of the tokenizer, or of how many features and classes there are."""
        return self.manifest.tokenizer_sha256

    @property
    def teacher(self) -> str:
        return self.manifest.teacher

    def __getitem__(self, index: int) -> Row:
        """Sequence `index` in shard order. Raises `IndexError`; `RequestError` when its shard is not good.

        Only this sequence is decoded; its shard is read and checked once, and the last few are held.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        place = int(self.entries.places_of(index))
        return self.rows(place, self._table(place), np.array([index]))[0]

    def table(self, place: int, disk: DiskCache | None = None) -> pa.Table:
        """The shard in this place of the index, checked and not decoded, kept on `disk` for the next who wants it.

        Raises `RequestError` when it is not good.
        """
        return _read_table(self.store, self.manifest, self.entry(place), disk)

    def entry(self, place: int) -> ShardEntry:
        """What the index says of the shard in this place of it."""
        return self.entries[place]

    def give_up(self) -> None:
        """Nothing is read any more: whoever waits for a shard waits no longer. Of a finished cache nobody does."""

    def rows(self, place: int, table: pa.Table, indices: np.ndarray) -> list[Row]:
        """These sequences out of the table of the shard that holds them; the others are not decoded."""
        own = table.take(pa.array(indices - int(self.entries.ends[place])))
        return _decode(self.store, self.manifest, int(self.entries.shard[place]), own, self.tables)

    def batches(self, size: int) -> Iterator[list[Row]]:
        """Rows in shard order, `size` at a time; the last batch may be smaller."""
        held: list[Row] = []
        for place in range(len(self.entries)):
            held += self.read_shard(place)
            while len(held) >= size:
                yield held[:size]
                held = held[size:]
        if held:
            yield held

    def read_shard(self, place: int) -> list[Row]:
        """All sequences of the shard in this place of the index. Raises `RequestError` when it is not good."""
        return read_rows(self.store, self.manifest, self.entry(place), self.tables)


def read_rows(store: Store, manifest: CacheManifest, entry: ShardEntry, tables: bytes | None) -> list[Row]:
    """All rows of a shard, which is held to everything that the index and the manifest say of it.

    Raises `RequestError` naming its file; with `FileNotFoundError` as its cause where there is none.
    """
    rows = _decode(store, manifest, entry.shard, _read_table(store, manifest, entry), tables)
    positions = sum(len(row.targets) for row in rows)
    if positions != entry.positions:
        raise RequestError(
            f"{store.uri}/{shard_name(entry.shard)} has {positions} positions, the index says {entry.positions}; "
            "repair the cache"
        )
    return rows


def _read_table(store: Store, manifest: CacheManifest, entry: ShardEntry, disk: DiskCache | None = None) -> pa.Table:
    table = _read_again_if_damaged(store, entry, disk)
    where = f"{store.uri}/{shard_name(entry.shard)}"
    if table.num_rows != entry.rows:
        raise RequestError(f"{where} has {table.num_rows} rows, the index says {entry.rows}; repair the cache")
    codec = shards.codec_of(table)
    if codec != manifest.codec:
        raise RequestError(
            f"{where} was written with codec {codec[:40]!r}, the manifest says {manifest.codec!r}; repair the cache"
        )
    if not hidden.is_said(table, manifest.hidden):
        raise RequestError(f"{where} does not keep the hidden states that the manifest says; repair the cache")
    return table


def _read_again_if_damaged(store: Store, entry: ShardEntry, disk: DiskCache | None) -> pa.Table:
    """The file's table. Bytes that are not the index's are read once more: a transfer may have been at fault."""
    name = shard_name(entry.shard)

    def known() -> bytes:
        try:
            return read_known(store, name, entry, _REMEDY)
        except RequestError as error:
            if error.__cause__ is not None:  # it is not there
                raise
        return read_known(store, name, entry, _REMEDY)

    data = known() if disk is None else disk.read(entry.sha256, known)
    return table_of(data, f"{store.uri}/{name}")


def _decode(store: Store, manifest: CacheManifest, shard: int, table: pa.Table, tables: bytes | None) -> list[Row]:
    """The rows of the shard's table, or of a slice of it."""
    try:
        return shards.decode(
            table, shard, manifest.fingerprint, manifest.packing == "isolate", tuple(manifest.temperatures),
            tables,
        )  # fmt: skip
    except RequestError as error:
        raise RequestError(f"{store.uri}/{shard_name(shard)}: {error}") from error


def open(uri: str | Store, **expected: Any) -> LogitCache:
    """Opens the finished cache in a folder or bucket. Raises `RequestError` when there is none.

    expected: what fields of its manifest must be for the caller, as `tokenizer_sha256`, `teacher`, `revision`,
    `packing`, `temperatures`, `vocabulary_size` or `codec`; a cache that is otherwise is refused, listing what differs.
    """
    store = uri if isinstance(uri, Store) else Store(uri)
    manifest = CacheManifest.read(store)
    if manifest is None:
        raise RequestError(f"{store.uri} holds no cache; run `dkd cache` first")
    if manifest.index is None:
        command = "dkd cache" if manifest.merge is None else "dkd merge"
        raise RequestError(f"{store.uri} is an unfinished cache; run `{command}` to finish it")
    unknown = sorted(expected.keys() - CacheManifest.model_fields.keys())
    if unknown:
        raise RequestError(f"a cache's manifest has no {', '.join(unknown)} that could be expected")
    lines = differences({key: getattr(manifest, key) for key in expected}, expected)
    if lines:
        raise RequestError(f"{store.uri} is not the cache that is expected ({'; '.join(lines)})")
    return LogitCache(store, manifest, read_entries(store, manifest), read_tables(store, manifest.tables))
