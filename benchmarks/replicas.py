"""Eight replicas against one on a real Ray, with a teacher that sleeps: what Ray and the driver cost, and nothing else.

    python benchmarks/replicas.py [--replicas 8] [--seconds 1] [--shards 20] [--rounds 3] [--json]

The product's `Fleet`, `Schedule` and `capture.run` on a local Ray; in the actors `Replica.capture` sleeps on the thread
of the accelerator for as long as a forward takes, in place of computing, and returns a receipt. Eight on two
processors can sleep at once where they could not compute. Each round times the same number of shards a replica with
one replica and then with all, from when they are loaded. `share` is the rate of all over so many times that of one;
`rate of one` is what it reaches of one shard in `--seconds`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

os.environ.setdefault("DKD_QUIET", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import ray

from distributed_kd.cache.manifest import PARTS, CacheManifest, Receipt
from distributed_kd.launch.ray_session import ray_session
from distributed_kd.recipe import Recipe, parse
from distributed_kd.store.digest import fingerprint
from distributed_kd.store.index import ShardEntry
from distributed_kd.teacher import fleet as fleets
from distributed_kd.teacher.capture import run
from distributed_kd.teacher.computed import Computed
from distributed_kd.teacher.fleet import Fleet
from distributed_kd.teacher.replica import Replica
from distributed_kd.teacher.schedule import Schedule


def sleeping(seconds: float) -> type[Replica]:
    """A replica whose forward of a shard is a sleep of so many seconds."""

    class Sleeping(Replica):
        def __init__(self, recipe: Recipe) -> None:
            from concurrent.futures import ThreadPoolExecutor

            self.recipe = recipe
            self.accelerator = ThreadPoolExecutor(1)

        def computes_in(self) -> Computed:
            return Computed("cpu", "float32")

        def load(self, computed: Computed | None = None) -> None:
            return None

        def capture(self, shard: int, manifest: CacheManifest) -> Receipt:
            self.accelerator.submit(time.sleep, seconds).result()
            entry = ShardEntry(shard, 256, 131_072, 12_000_000, "0" * 64)
            return Receipt(manifest.fingerprint, entry, dict.fromkeys(PARTS, 0), 0.0)

    return Sleeping


def shards_per_second(replicas: int, shards: int) -> float:
    recipe = parse(
        {
            "name": "benchmark", "workdir": "memory://none",
            "corpus": {"source": "none"}, "teachers": [{"model": "none"}],
            "capture": {"replicas": replicas, "address": "local"}, "student": {"model": "none"},
            "trainer": {"steps": 1},
        }
    )  # fmt: skip
    made_from = {"benchmark": "replicas"}
    manifest = CacheManifest(
        made_from=made_from, fingerprint=fingerprint(made_from), codec="plain-1", teacher="none", revision=None,
        tokenizer_sha256="0" * 64, vocabulary_size=50_000, packing="none", method="top_k", k=64, temperatures=[1.0],
        shards=shards, index=None,
    )  # fmt: skip
    ray.init(
        address="local", num_cpus=replicas, include_dashboard=False, log_to_driver=False, configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
    )  # fmt: skip
    try:
        with ray_session(None) as cluster:
            fleet = Fleet(recipe, cluster)
            fleet.fit(shards)
            while fleet.size < replicas:
                fleet.wait(1.0)
            begun = time.perf_counter()
            done = [receipt for receipt in run(fleet, Schedule(range(shards)), manifest) if receipt is not None]
            seconds = time.perf_counter() - begun
    finally:
        ray.shutdown()
    assert sorted(receipt.entry.shard for receipt in done) == list(range(shards))
    return shards / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a shard's forward")
    parser.add_argument("--shards", type=int, default=20, help="for each replica")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    fleets.Replica = sleeping(options.seconds)  # type: ignore[misc]
    rows: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        load = os.getloadavg()[0]
        one = shards_per_second(1, options.shards)
        every = shards_per_second(options.replicas, options.replicas * options.shards)
        rows.append(
            {
                "replicas": options.replicas, "seconds": options.seconds, "shards_per_second_of_one": one,
                "shards_per_second_of_all": every, "share": every / (options.replicas * one), "load_before": load,
            }
        )  # fmt: skip
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "ray": ray.__version__},
        "rows": rows,
        "share": statistics.median(row["share"] for row in rows),
    }
    if options.json:
        print(json.dumps(report))
        return
    print(f"{report['machine']}; {', '.join(f'{name} {v}' for name, v in report['versions'].items())}")
    print(f"{'replicas':>9} {'rate of one':>12} {'shards/s of one':>16} {'of all':>8} {'share':>7} {'load before':>12}")
    for row in rows:
        print(
            f"{row['replicas']:9} {row['shards_per_second_of_one'] * options.seconds:12.3f}"
            f" {row['shards_per_second_of_one']:16.3f} {row['shards_per_second_of_all']:8.3f} {row['share']:7.3f}"
            f" {row['load_before']:12.1f}"
        )
    print(f"median share {report['share']:.3f}")


if __name__ == "__main__":
    main()
