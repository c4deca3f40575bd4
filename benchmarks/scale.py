"""A capture of a million shards by two thousand replicas that come and go: the driver's own code on a made-up clock.

    python benchmarks/scale.py [--shards 10000 100000 1000000] [--replicas 2000] [--json]

What decides is the product's: `capture.run`, `Schedule`, `Receipts` and their folding into files, and which replicas
`Fleet` finds room in. What is simulated is what costs money, replicas and the store, event by event:

- A replica loads for `--load` seconds, then takes shards, one in the teacher for `--forward` seconds (10% more or less
  at random) while the one before is written. It is lost after an exponential time of `--life` hours in the mean, with
  all that it has. A machine in its place comes after `--replace` seconds, and loads again.
- A shard is two puts, one after the other, of 50 ms. The store takes `--puts` a second on a prefix: S3's published
  figure is 3,500, and both files count as if on one. It refuses more, and those are tried again after a time that
  doubles, with jitter, as S3's clients do.
- The driver does one thing at a time. Whatever real time its code takes passes on the clock, and `--ray` milliseconds
  for each shard besides, which stand for Ray's part. A file of a thousand receipts takes a second.

120 s a shard: a teacher of 7 billion parameters does 14 GFLOP a position, so an H100 at 40% of its 989 TFLOP/s goes
through 28,000 positions a second, and through 3.4 million, as 830 sequences of 4,096, in 120 s. A shard is as long as
`corpus.shard_sequences` makes it; the shorter, the harder for the driver and the store.

`teacher` is the share of the time of all places, from the start to the last shard, that went into forwards of shards
that were then written. Loading, waiting, what lost replicas had in work, and the end, where shards run out, count
against it: few shards have much of both ends. `driver` is how long the driver's own code ran, in seconds a simulated
day. `state` is the most that the process grew by while the capture ran, `commit` when its index was written. Each row
is a process of its own.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("DKD_QUIET", "1")  # thousands of lost replicas, a line each

import numpy as np
import pyarrow as pa
import ray

from distributed_kd.cache.manifest import PARTS, CacheManifest, Receipt
from distributed_kd.cache.receipts import Receipts
from distributed_kd.cache.writer import commit
from distributed_kd.store.digest import fingerprint
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry
from distributed_kd.teacher import capture
from distributed_kd.teacher.fleet import Event, Fleet
from distributed_kd.teacher.schedule import Schedule

PUT_SECONDS = 0.05
FOLD_SECONDS = 1.0
FIRST_RETRY_SECONDS, MOST_RETRY_SECONDS = 0.5, 20.0


@dataclass(frozen=True)
class World:
    """What is simulated; the fields are the command's flags."""

    shards: int = 1_000_000
    replicas: int = 2000
    forward: float = 120.0
    load: float = 90.0
    replace: float = 180.0
    life: float = 24.0
    puts: int = 3500
    ray: float = 5.0
    seed: int = 0


class Clock:
    """Stands where `capture.run` has the module `time`: simulated seconds, and the driver's real ones on top."""

    def __init__(self) -> None:
        self.simulated = 0.0
        self.driver = 0.0  # real seconds that the driver's code took
        self._resumed = time.perf_counter()

    def monotonic(self) -> float:
        return self.simulated + time.perf_counter() - self._resumed

    def pause(self) -> float:
        """The driver stops; returns what time it is."""
        took = time.perf_counter() - self._resumed
        self.driver += took
        self.simulated += took
        return self.simulated

    def resume(self) -> None:
        self._resumed = time.perf_counter()


class Prefix:
    """A store that takes so many puts in each second, and refuses what is more."""

    def __init__(self, puts: int) -> None:
        self.most = puts
        self.refused = 0
        self._taken: dict[int, int] = {}
        self.peak = 0

    def takes(self, at: float) -> bool:
        second = int(at)
        taken = self._taken.get(second, 0)
        if taken >= self.most:
            self.refused += 1
            return False
        if len(self._taken) > 1000:
            self._taken = {known: count for known, count in self._taken.items() if known >= second - 100}
        self._taken[second] = taken + 1
        self.peak = max(self.peak, taken + 1)
        return True


class FoldingStore(Store):
    """The local folder to which the driver's files go, each of them in as long as a bucket takes."""

    def __init__(self, uri: str, clock: Clock) -> None:
        super().__init__(uri)
        self.clock = clock

    def put(self, name: str, data: bytes) -> None:
        super().put(name, data)
        self.clock.simulated += FOLD_SECONDS


@dataclass
class Machine:
    """A replica: the shards that it has, in order, and whether the first of those not yet through is in the teacher."""

    queue: list[int] = field(default_factory=list)
    is_busy: bool = False


class SimulatedFleet(Fleet):
    """A fleet without Ray: what it says of its replicas is the product's code, and the rest happens on the clock.

    What happens is (time, number, what, replica, shard, retries), in order of time.
    """

    def __init__(self, world: World, key: str) -> None:
        self.world, self.key = world, key
        self.clock, self.prefix, self.drawn = Clock(), Prefix(world.puts), random.Random(world.seed)
        self._held: dict[str, int] = {}  # as in `Fleet`: a loaded replica to how many shards it has
        self._handles: dict[str, Machine] = {}  # loading ones, too
        self._unplaced: dict[Any, str] = {}  # none waits for a place
        self.happens: list[tuple[float, int, str, str, int, int]] = []
        self.ordinal = itertools.count()
        self.places_taken = self.named = self.lost = 0
        self.forward_seconds = np.zeros(world.shards, np.float32)  # of the shard's last time in a teacher
        self.times_done = np.zeros(world.shards, np.uint8)

    def at(self, when: float, what: str, replica: str, shard: int = -1, retries: int = 0) -> None:
        heapq.heappush(self.happens, (when, next(self.ordinal), what, replica, shard, retries))

    def fit(self, work: int) -> None:
        while self.places_taken < min(max(1, work), self.world.replicas):
            name = f"replica {self.named}"
            self.named += 1
            self.places_taken += 1
            self._handles[name] = Machine()
            now = self.clock.monotonic()
            self.at(now + self.world.load, "loaded", name)
            self.at(now + self.drawn.expovariate(1.0 / (3600.0 * self.world.life)), "lost", name)

    def give(self, replica: str, shard: int, manifest: CacheManifest) -> None:
        self._held[replica] += 1
        machine = self._handles[replica]
        machine.queue.append(shard)
        self._next_forward(self.clock.monotonic(), replica, machine)

    def _next_forward(self, now: float, replica: str, machine: Machine) -> None:
        if machine.queue and not machine.is_busy:
            machine.is_busy = True
            shard = machine.queue.pop(0)
            seconds = self.world.forward * self.drawn.uniform(0.9, 1.1)
            self.forward_seconds[shard] = seconds
            self.at(now + seconds, "computed", replica, shard)

    def wait(self, seconds: float) -> list[Event]:
        now = self.clock.pause()
        until = now + seconds
        found: list[Event] = []
        while self.happens and not found and self.happens[0][0] <= until:
            now = max(now, self.happens[0][0])
            while self.happens and self.happens[0][0] <= now:
                found += self._happened(*heapq.heappop(self.happens))
        now = max(now, until) if not found else now
        self.clock.simulated = now + 1e-3 * self.world.ray * len(found)
        self.clock.resume()
        return found

    def _happened(self, now: float, _: int, what: str, replica: str, shard: int, retries: int) -> list[Event]:
        if what == "place":
            self.places_taken -= 1
            return []
        machine = self._handles.get(replica)
        if machine is None:  # it was lost before this
            return []
        if what == "loaded":
            self._held[replica] = 0
        elif what == "lost":
            del self._handles[replica]
            self._held.pop(replica, None)
            self.lost += 1
            self.at(now + self.world.replace, "place", replica)
            return [Event(replica, "lost", "preempted")]
        elif what == "computed":
            machine.is_busy = False
            self._next_forward(now, replica, machine)
            self._put(now, "shard", replica, shard, 0)
        elif what == "shard is put":
            self._put(now, "receipt", replica, shard, 0)
        elif what == "receipt is put":
            self._held[replica] -= 1
            self.times_done[shard] += 1
            return [Event(replica, "done", self._receipt(shard), shard)]
        else:
            self._put(now, what, replica, shard, retries)
        return []

    def _put(self, now: float, what: str, replica: str, shard: int, retries: int) -> None:
        if self.prefix.takes(now):
            self.at(now + PUT_SECONDS, f"{what} is put", replica, shard)
        else:
            most = min(MOST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0**retries)
            self.at(now + self.drawn.uniform(0.0, most), what, replica, shard, retries + 1)

    def _receipt(self, shard: int) -> Receipt:
        entry = ShardEntry(shard, 256, 131_072, 12_000_000, f"{self.drawn.getrandbits(256):064x}")
        return Receipt(self.key, entry, dict.fromkeys(PARTS, 2_000_000), 120_000.0)


def memory(field: str = "VmRSS") -> int:
    """Of this process, in bytes; VmHWM is the most that it had since `forget_peak`."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def simulate(world: World, folder: str) -> dict[str, Any]:
    """One capture from nothing to its index. Raises `AssertionError` when a shard was not done exactly once."""
    made_from = {"benchmark": world.shards}
    manifest = CacheManifest(
        made_from=made_from, fingerprint=fingerprint(made_from), codec="plain-1", teacher="none", revision=None,
        tokenizer_sha256="0" * 64, vocabulary_size=50_000, packing="none", method="top_k", k=64, temperatures=[1.0],
        shards=world.shards, index=None,
    )  # fmt: skip
    fleet = SimulatedFleet(world, manifest.fingerprint)
    store = FoldingStore(folder, fleet.clock)
    forget_peak()
    before, begun, clock = memory(), time.perf_counter(), fleet.clock
    capture.time, module = clock, capture.time  # type: ignore[assignment]
    try:
        receipts = Receipts.read_all(store, manifest.fingerprint, manifest.shards)
        schedule = Schedule(receipts.missing.tolist())
        fleet.fit(schedule.waiting)
        clock.resume()
        for receipt in capture.run(fleet, schedule, manifest):
            if receipt is not None:
                receipts[receipt.entry.shard] = receipt
                receipts.fold(store)
        clock.pause()
    finally:
        capture.time = module  # type: ignore[assignment]
    run_peak, seconds = memory("VmHWM"), clock.simulated
    assert not schedule.set_aside
    assert receipts.missing.size == 0
    assert (fleet.times_done == 1).all(), "a shard was done twice, or never"
    wall = time.perf_counter() - begun
    forget_peak()
    commit(store, manifest, receipts)
    return {
        "shards": world.shards, "replicas": world.replicas, "lost_replicas": fleet.lost, "days": seconds / 86400.0,
        "teacher_share": float(fleet.forward_seconds.sum(dtype=np.float64)) / (world.replicas * seconds),
        "driver_seconds_per_day": clock.driver / (seconds / 86400.0),
        "driver_milliseconds_per_shard": 1e3 * clock.driver / world.shards,
        "state_bytes": run_peak - before, "commit_bytes": memory("VmHWM") - before, "before_bytes": before,
        "receipt_files": len(store.list("receipts")),
        "peak_puts_per_second": fleet.prefix.peak, "refused_puts": fleet.prefix.refused, "wall_seconds": wall,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    for name, what in (
        ("replicas", "places for them"), ("forward", "seconds of a shard in the teacher"),
        ("load", "seconds to load a teacher"), ("replace", "seconds until another machine is there"),
        ("life", "hours until a replica is lost, in the mean"), ("puts", "a second that the store takes"),
        ("ray", "milliseconds of Ray in the driver for a shard"), ("seed", "of all that is drawn"),
    ):  # fmt: skip
        default = getattr(World, name)
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{what} ({default})")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # one row, in this process
    options = parser.parse_args()
    if options.here:
        (shards,) = options.shards
        world = World(shards, *(getattr(options, name) for name in list(World.__dataclass_fields__)[1:]))
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(simulate(world, folder)))
        return
    flags = [f"--{name}={getattr(options, name)}" for name in World.__dataclass_fields__ if name != "shards"]
    rows = []
    for shards in options.shards:
        command = [sys.executable, __file__, "--here", "--shards", str(shards), *flags]
        load = os.getloadavg()[0]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows.append(json.loads(done.stdout) | {"load_before": load})
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
            "ray": ray.__version__,
        },
        "world": {name: getattr(options, name) for name in World.__dataclass_fields__},
        "rows": rows,
    }
    if options.json:
        print(json.dumps(report))
        return
    print(f"{report['machine']}; {', '.join(f'{name} {v}' for name, v in report['versions'].items())}")
    print(
        f"{'shards':>10} {'replicas':>9} {'lost':>6} {'days':>6} {'teacher %':>10} {'driver s/day':>13} {'ms/shard':>9}"
        f" {'state MB':>9} {'commit MB':>10} {'files':>6} {'puts/s':>7} {'refused':>8}"
    )
    for row in rows:
        print(
            f"{row['shards']:10,} {row['replicas']:9,} {row['lost_replicas']:6,} {row['days']:6.2f}"
            f" {100 * row['teacher_share']:10.2f} {row['driver_seconds_per_day']:13.1f}"
            f" {row['driver_milliseconds_per_shard']:9.3f} {row['state_bytes'] / 1e6:9.1f}"
            f" {row['commit_bytes'] / 1e6:10.1f} {row['receipt_files']:6,} {row['peak_puts_per_second']:7,}"
            f" {row['refused_puts']:8,}"
        )


if __name__ == "__main__":
    main()
