"""What handing out shards costs: shards a second through replicas that do nothing, three ways on one local Ray.

    python benchmarks/scheduling.py [--shards 1000] [--replicas 2] [--ways fleet] [--json]

`fleet` is the capture's own loop (`teacher/capture.py: run` over `Fleet` and `Schedule`), its replica one that returns
a receipt at once; `actor_pool` is `ray.util.ActorPool.map_unordered` over the same actors, `ray_data` a `map_batches`
of Ray Data over shard numbers with an actor pool of the same size, a shard a batch. The rate is from the first
receipt to the last, so that starting actors and loading count for none of them. The driver's resident memory is taken
on the way, at 10 thousand shards and at each tenfold: of `fleet` with the receipts that a capture keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"

import numpy as np
import psutil
import ray

from distributed_kd.cache.manifest import PARTS, CacheManifest, Receipt
from distributed_kd.cache.receipts import Receipts
from distributed_kd.launch.ray_cluster import RayCluster
from distributed_kd.recipe import Recipe, parse
from distributed_kd.store.digest import fingerprint
from distributed_kd.store.index import ShardEntry
from distributed_kd.teacher import fleet as fleets
from distributed_kd.teacher.capture import run
from distributed_kd.teacher.computed import Computed
from distributed_kd.teacher.schedule import Schedule


class NoReplica:
    """What `Replica` answers, at once."""

    def __init__(self, recipe: Recipe) -> None:
        self.done = 0

    def computes_in(self) -> Computed:
        return Computed("cpu", "float32")

    def load(self, computed: Computed) -> None:
        pass

    def progress(self) -> int:
        return self.done

    def capture(self, shard: int, manifest: CacheManifest) -> Receipt:
        self.done += 1
        return Receipt(manifest.fingerprint, ShardEntry(shard, 1, 1, 1, "0" * 64), dict.fromkeys(PARTS, 0), 0.0)


class Batches:
    """The same for Ray Data: a batch of one shard number in, its receipt's numbers out."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"shard": batch["id"], "bytes": np.ones(len(batch["id"]), np.int64)}


def through_fleet(shards: int, replicas: int, manifest: CacheManifest, recipe: Recipe) -> Iterator[Any]:
    fleets.Replica = NoReplica  # type: ignore[assignment,misc]
    cluster = RayCluster()
    fleet = fleets.Fleet(recipe, cluster)
    fleet.fit(shards)
    receipts = Receipts(manifest.fingerprint, shards)
    for receipt in filter(None, run(fleet, Schedule(range(shards)), manifest)):
        receipts[receipt.entry.shard] = receipt
        yield receipt
    cluster.close()


def through_actor_pool(shards: int, replicas: int, manifest: CacheManifest, recipe: Recipe) -> Iterator[Any]:
    from ray.util import ActorPool

    remote: Any = ray.remote
    pool = ActorPool([remote(num_cpus=1)(NoReplica).remote(recipe) for _ in range(replicas)])
    yield from pool.map_unordered(lambda actor, shard: actor.capture.remote(shard, manifest), list(range(shards)))


def through_ray_data(shards: int, replicas: int, manifest: CacheManifest, recipe: Recipe) -> Iterator[Any]:
    ray.data.DataContext.get_current().enable_progress_bars = False
    numbers = ray.data.range(shards, override_num_blocks=shards)
    done = numbers.map_batches(Batches, batch_size=1, concurrency=replicas, num_cpus=1)
    yield from done.iter_batches(batch_size=1)


WAYS = {"fleet": through_fleet, "actor_pool": through_actor_pool, "ray_data": through_ray_data}
_LOOKS = (10_000, 100_000, 1_000_000)  # shards, after which the driver's memory is looked at


def measure(name: str, shards: int, replicas: int) -> dict[str, Any]:
    """In a Ray of its own, so that one way's actors are gone before the next begins."""
    with tempfile.TemporaryDirectory() as folder:
        data = {
            "name": "none", "workdir": folder, "corpus": {"source": "none"}, "teachers": [{"model": "none"}],
            "student": {"model": "none"}, "trainer": {"steps": 1}, "capture": {"replicas": replicas},
        }  # fmt: skip
        recipe = parse(data)
        made_from = {"benchmark": shards}
        manifest = CacheManifest(
            made_from=made_from, fingerprint=fingerprint(made_from), codec="plain-1", teacher="none", revision=None,
            tokenizer_sha256="0" * 64, vocabulary_size=50_000, packing="none", method="top_k", k=64,
            temperatures=[1.0], shards=shards, index=None,
        )  # fmt: skip
        ray.init(
            address="local", num_cpus=replicas + 1, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}},
        )  # fmt: skip
        try:
            receipts = WAYS[name](shards, replicas, manifest, recipe)
            next(receipts)
            begun, held = time.perf_counter(), {}
            for count, _ in enumerate(receipts, start=2):
                if count in _LOOKS or count == shards:
                    held[count] = psutil.Process().memory_info().rss
            seconds = time.perf_counter() - begun
        finally:
            ray.shutdown()
    assert count == shards, f"{name}: {count} of {shards}"
    rate = (shards - 1) / seconds
    return {"way": name, "shards": shards, "replicas": replicas, "shards_per_second": rate, "driver_bytes": held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "ray": ray.__version__},
        "rows": [measure(way, options.shards, options.replicas) for way in options.ways],
    }
    if options.json:
        print(json.dumps(report))
        return
    print(f"{report['machine']}; {', '.join(f'{name} {v}' for name, v in report['versions'].items())}")
    print(f"{'way':>12} {'shards':>9} {'replicas':>9} {'shards/s':>9}  driver's MB after so many shards")
    for row in report["rows"]:
        held = ", ".join(f"{size / 1e6:.0f} after {count:,}" for count, size in row["driver_bytes"].items())
        print(f"{row['way']:>12} {row['shards']:9,} {row['replicas']:9} {row['shards_per_second']:9.0f}  {held}")


if __name__ == "__main__":
    main()
