"""Shards of the cache in memory while they are needed: fetched ahead by threads in the order of their first use, and
dropped after their last.

What is to come is planned a span of steps at a time, an epoch at most. In memory are the shards that are in use, which
the order of training bounds (`order.py`), and those ahead of them, which `_AHEAD_BYTES` bounds, one shard aside. Both
count a shard's bytes as they are stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa

_THREADS = 8  # waits for a store, not work: at 50 ms and 100 MB/s a connection, 8 give most of a gigabyte a second
_AHEAD_BYTES = 256 << 20

_Key = tuple[int, int]  # the span, and the place of a shard in the cache's index


class ShardTables:
    """`fetch` reads the shard at a place, in a thread of its own; `sizes` [shards] are their bytes."""

    def __init__(self, fetch: Callable[[int], pa.Table], sizes: np.ndarray) -> None:
        self._fetch, self._sizes = fetch, sizes
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="shard-reader")
        self._coming: deque[_Key] = deque()
        self._uses: dict[_Key, int] = {}
        self._tables: dict[_Key, Future[pa.Table]] = {}
        self._unused: set[_Key] = set()  # fetched, or being fetched, and not used yet
        self._ahead = 0  # their bytes

    def plan(self, span: int, places: np.ndarray) -> None:
        """What a span uses: [uses] int64, the place of the shard that each is of, in their order."""
        found, first, uses = np.unique(places, return_index=True, return_counts=True)
        self._uses |= {(span, place): count for place, count in zip(found.tolist(), uses.tolist(), strict=True)}
        self._coming.extend((span, place) for place in found[np.argsort(first)].tolist())
        self._fetch_ahead()

    def take(self, span: int, place: int, uses: int) -> pa.Table:
        """The shard, for so many of the uses that were planned. Raises what `fetch` raised."""
        key = (span, place)
        if key in self._unused:
            self._unused.remove(key)
            self._ahead -= int(self._sizes[place])
            self._fetch_ahead()
        table = self._tables[key].result()
        self._uses[key] -= uses
        if not self._uses[key]:
            del self._uses[key], self._tables[key]
        return table

    def close(self) -> None:
        """Waits for what is being read, and reads nothing more."""
        self._threads.shutdown(cancel_futures=True)

    def _fetch_ahead(self) -> None:
        while self._coming and (self._ahead < _AHEAD_BYTES or not self._unused):
            key = self._coming.popleft()
            self._unused.add(key)
            self._ahead += int(self._sizes[key[1]])
            self._tables[key] = self._threads.submit(self._fetch, key[1])
