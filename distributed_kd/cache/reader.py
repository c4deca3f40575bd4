"""Opening a cache and reading it by sequence, from this package or from any other code."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa

from distributed_kd.cache import shard as shards
from distributed_kd.cache.manifest import CacheManifest, read_entries, read_tables
from distributed_kd.cache.shard import Row
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, read_shard, shard_name

_SHARDS_HELD = 4


class LogitCache:
    """A finished cache: `len(cache)` sequences, `cache[i]` a `Row`, every byte checked against its digest when read."""

    def __init__(
        self, store: Store, manifest: CacheManifest, entries: list[ShardEntry], tables: bytes | None = None
    ) -> None:
        self.store = store
        self.manifest = manifest
        self.entries = entries
        self.tables = tables
        self._ends = np.cumsum([0] + [entry.rows for entry in entries])
        self._table = lru_cache(_SHARDS_HELD)(self._read_table)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Row:
        """Sequence `index` in shard order. Raises `IndexError`; `RequestError` when its shard is not good.

        Only this sequence is decoded; its shard is read and checked once, and the last few are held.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        place = int(np.searchsorted(self._ends, index, "right")) - 1
        return self._decode(place, self._table(place).slice(index - int(self._ends[place]), 1))[0]

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
        return self._decode(place, self._table(place))

    def _read_table(self, place: int) -> pa.Table:
        entry = self.entries[place]
        table = read_shard(self.store, entry)
        if table.num_rows != entry.rows:
            raise RequestError(
                f"{self.store.uri}: shard {entry.shard} has {table.num_rows} rows, the index says {entry.rows}; "
                "repair the cache"
            )
        if shards.codec_of(table) != self.manifest.codec:
            raise RequestError(
                f"{self.store.uri}/{shard_name(entry.shard)} was written with codec {shards.codec_of(table)[:40]!r}, "
                f"the manifest says {self.manifest.codec!r}; repair the cache"
            )
        return table

    def _decode(self, place: int, table: pa.Table) -> list[Row]:
        shard, manifest = self.entries[place].shard, self.manifest
        try:
            return shards.decode(
                table, shard, manifest.fingerprint, manifest.packing == "isolate", tuple(manifest.temperatures),
                self.tables,
            )  # fmt: skip
        except RequestError as error:
            raise RequestError(f"{self.store.uri}/{shard_name(shard)}: {error}") from error


def open(uri: str | Store) -> LogitCache:
    """Opens the finished cache in a folder or bucket. Raises `RequestError` when there is none."""
    store = uri if isinstance(uri, Store) else Store(uri)
    manifest = CacheManifest.read(store)
    if manifest is None:
        raise RequestError(f"{store.uri} holds no cache; run `dkd cache` first")
    if manifest.index is None:
        command = "dkd cache" if manifest.merge is None else "dkd merge"
        raise RequestError(f"{store.uri} is an unfinished cache; run `{command}` to finish it")
    return LogitCache(store, manifest, read_entries(store, manifest), read_tables(store, manifest.tables))
