"""Opening a cache and reading it by sequence, from this package or from any other code."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from distributed_kd.cache import shard as shards
from distributed_kd.cache.manifest import CacheManifest, read_tables
from distributed_kd.cache.shard import Row
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, read_index, read_shard

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
        self.read_shard = lru_cache(_SHARDS_HELD)(self._read_shard)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Row:
        """Sequence `index` in shard order. Raises `IndexError`; `RequestError` when its shard is not good."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        place = int(np.searchsorted(self._ends, index, "right")) - 1
        return self.read_shard(place)[index - int(self._ends[place])]

    def batches(self, size: int) -> Iterator[list[Row]]:
        """Rows in shard order, `size` at a time; the last batch may be smaller."""
        for begin in range(0, len(self), size):
            yield [self[index] for index in range(begin, min(begin + size, len(self)))]

    def _read_shard(self, place: int) -> list[Row]:
        entry = self.entries[place]
        rows = shards.decode(
            read_shard(self.store, entry),
            entry.shard,
            self.manifest.fingerprint,
            self.manifest.packing == "isolate",
            tuple(self.manifest.temperatures),
            self.tables,
        )
        if len(rows) != entry.rows:
            raise RequestError(
                f"{self.store.uri}: shard {entry.shard} has {len(rows)} rows, the index says {entry.rows}"
            )
        return rows


def open(uri: str | Store) -> LogitCache:
    """Opens the finished cache in a folder or bucket. Raises `RequestError` when there is none."""
    store = uri if isinstance(uri, Store) else Store(uri)
    manifest = CacheManifest.read(store)
    if manifest is None:
        raise RequestError(f"{store.uri} holds no cache; run `dkd cache` first")
    if manifest.index is None:
        raise RequestError(f"{store.uri} is an unfinished cache; run `dkd cache` to finish it")
    return LogitCache(store, manifest, read_index(store, manifest.index), read_tables(store, manifest.tables))
