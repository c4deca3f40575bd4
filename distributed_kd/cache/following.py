"""A cache that is read while it is captured: a shard that is not there yet is waited for where it is asked for.

Which shards there will be, and how many rows each has, the sequences say; its digest comes with its receipt. So whoever
goes through the rows in an order of their own finds the same ones as in the finished cache.
"""

from __future__ import annotations

import threading
import time

from distributed_kd.cache.manifest import CacheManifest, read_tables
from distributed_kd.cache.reader import LogitCache, open
from distributed_kd.cache.receipts import find
from distributed_kd.errors import WorkError
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, ShardIndex, shard_name
from distributed_kd.store.lease import SECONDS, is_held

_LOOK_SECONDS = 1.0
_PATIENCE = SECONDS + 30.0  # without a capture: one that begins, or is started again, takes a while
_BYTES_A_POSITION = 100  # about; how much is read ahead goes by it


class FollowedCache(LogitCache):
    """`planned`: the sequences' index of the shards that are captured."""

    def __init__(self, store: Store, manifest: CacheManifest, planned: ShardIndex) -> None:
        size = planned.positions * _BYTES_A_POSITION
        entries = ShardIndex(planned.shard, planned.rows, planned.positions, size, planned.sha256)
        super().__init__(store, manifest, entries, read_tables(store, manifest.tables))
        self._given_up = threading.Event()

    def entry(self, place: int) -> ShardEntry:
        """Waits for the shard's receipt. Raises `WorkError` where no capture runs that would write it."""
        shard = int(self.entries.shard[place])
        capture = _Capture(self.store, self._given_up)
        while True:
            receipt = find(self.store, self.manifest.fingerprint, shard)
            if receipt is not None:
                return receipt.entry
            capture.wait(f"{self.store.uri}/{shard_name(shard)}")

    def give_up(self) -> None:
        self._given_up.set()


def follow(store: Store, planned: ShardIndex) -> LogitCache:
    """The cache in a folder as soon as its capture has begun; a finished one as it is. Raises `WorkError`."""
    capture = _Capture(store, threading.Event())
    while True:
        manifest = CacheManifest.read(store)
        if manifest is not None and (manifest.index is not None or manifest.merge is not None):
            return open(store)
        if manifest is not None:
            return FollowedCache(store, manifest, planned)
        capture.wait(store.uri)


class _Capture:
    """Looks whether one runs, while something of it is waited for."""

    def __init__(self, store: Store, given_up: threading.Event) -> None:
        self._store, self._given_up, self._seen = store, given_up, time.monotonic()

    def wait(self, what: str) -> None:
        """A moment. Raises `WorkError` when none has run for longer than one that is started again is away."""
        if self._given_up.wait(_LOOK_SECONDS):
            raise WorkError(f"{what} is no longer waited for")
        if is_held(self._store):
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > _PATIENCE:
            raise WorkError(
                f"{what} is not captured yet, and no `dkd cache` runs; run it, then the same command goes on from the "
                "last checkpoint"
            )
