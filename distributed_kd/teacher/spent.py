"""What a capture has taken so far: an ended command's hours are paid for as well as those of the one that finishes."""

from __future__ import annotations

import time

from distributed_kd import console
from distributed_kd.errors import RequestError, StoreError
from distributed_kd.store.filesystem import Store
from distributed_kd.store.manifest import Run

EVERY_SECONDS = 60.0  # what a killed command does not tell


class Spent:
    """Adds a command that began at `begun` (of `time.monotonic`) to what `run.json` says of those before it."""

    def __init__(self, store: Store, begun: float) -> None:
        self._store, self._begun, self._kept = store, begun, begun
        self._device_seconds, self._peak = 0.0, 0
        try:
            self._before = Run.read(store) or Run(0.0, 0)
        except RequestError as error:
            console.say(f"cache: {error}; it counts from here on")
            self._before = Run(0.0, 0)

    def so_far(self, device_seconds: float) -> None:
        """Of this command; kept once a minute. A store that fails is asked again a minute later: all else goes on."""
        self._device_seconds = device_seconds
        if time.monotonic() - self._kept < EVERY_SECONDS:
            return
        try:
            self.keep()
        except StoreError as error:
            console.say(f"cache: how long it took so far is not kept: {error}")

    def in_all(self, device_seconds: float, peak_memory_bytes: int) -> None:
        self._device_seconds, self._peak = device_seconds, peak_memory_bytes
        self.keep()

    def keep(self) -> None:
        """Writes the sum; this command's wall time is what has passed since it began."""
        self._kept = time.monotonic()
        Run(
            self._before.seconds + self._kept - self._begun,
            max(self._before.peak_memory_bytes, self._peak),
            self._before.device_seconds + self._device_seconds,
        ).put(self._store)
