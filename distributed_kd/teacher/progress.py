"""How far a capture is: one set of numbers for the person at the terminal and for Prometheus.

Ray exports them from every node (`ray.util.metrics`, about every ten seconds) as `ray_dkd_capture_*`, each with the
cache's folder as its tag `cache`. Rates are of this run; what an earlier one wrote counts as done and as nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from distributed_kd.cache.manifest import Receipt

GAUGES = {
    "shards": "shards of the cache",
    "shards_done": "shards that are written",
    "positions_done": "positions that are written",
    "positions_per_second": "positions written a second, since this run began",
    "bytes_per_position": "bytes written for a position, since this run began",
    "replicas": "copies of the teacher at work",
    "failures": "shards that gave an error and replicas that were lost, since this run began",
    "seconds_left": "seconds until the last shard, at this rate",
}


@dataclass
class Progress:
    shards: int
    positions: int
    shards_done: int  # by an earlier run; then by this one as well
    positions_done: int
    replicas: int = 0
    failures: int = 0
    positions_of_run: int = 0
    bytes_of_run: int = 0
    _begun: float = field(default_factory=time.monotonic)

    def add(self, receipt: Receipt) -> None:
        self.shards_done += 1
        self.positions_done += receipt.entry.positions
        self.positions_of_run += receipt.entry.positions
        self.bytes_of_run += receipt.entry.bytes

    @property
    def positions_per_second(self) -> float:
        return self.positions_of_run / max(1e-9, time.monotonic() - self._begun)

    @property
    def bytes_per_position(self) -> float:
        """0 before the first shard."""
        return self.bytes_of_run / max(1, self.positions_of_run)

    @property
    def seconds_left(self) -> float:
        """Infinite before the first shard."""
        rate = self.positions_per_second
        return (self.positions - self.positions_done) / rate if rate else float("inf")

    def note(self) -> str:
        """The words beside the bar, which itself shows the positions and the time that is left."""
        words = [
            f"{self.shards_done:,} of {self.shards:,} shards",
            f"{self.positions_per_second:,.0f} positions/s",
            f"{self.bytes_per_position:.0f} bytes a position",
            f"{self.replicas} replicas",
        ]
        return ", ".join(words + ([f"{self.failures} failures"] if self.failures else []))


class Metrics:
    """The numbers of a `Progress` as gauges of the Ray session that this process is in."""

    def __init__(self, cache: str) -> None:
        from ray.util.metrics import Gauge

        self._tags = {"cache": cache}
        self._gauges = {
            name: Gauge(f"dkd_capture_{name}", description=text, tag_keys=("cache",)) for name, text in GAUGES.items()
        }

    def show(self, progress: Progress) -> None:
        for name, gauge in self._gauges.items():
            gauge.set(float(getattr(progress, name)), tags=self._tags)
