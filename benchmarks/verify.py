"""How fast `dkd verify` checks a cache, and how that grows with its processes.

    python benchmarks/verify.py [--megabytes 1000] [--shard-rows 64] [--jobs 1 2] [--folder KEPT] [--json]

Writes a plain-1 cache of synthetic targets (512 tokens a sequence, 64 ids a position, in shards of `--shard-rows`
sequences), reads it once so that the disk is not what is measured, and runs the command with each number of jobs, the
best of three. `MB/s` is the command's own figure, without its start; `seconds` are of the whole command, `processor`
those of all its processes. With `--folder` the cache is kept there, and one that is there is used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # or Arrow and BLAS would use every processor in each process

import numpy as np
import pyarrow as pa

from distributed_kd.cache import shard
from distributed_kd.cache.manifest import PARTS, CacheManifest
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.store.digest import fingerprint, sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, put_index, shard_name

LENGTH, K, VOCABULARY = 512, 64, 50_000
RUNS = 3


def synthetic_rows(first: int, count: int) -> list[Row]:
    """Distinct ids drawn at random, logits that fall, as incompressible as a teacher's."""
    rng = np.random.default_rng(first)
    mask = np.arange(LENGTH) < LENGTH - 1
    run = np.array([LENGTH], np.int32)
    rows = []
    for number in range(first, first + count):
        steps = rng.integers(1, VOCABULARY // K, (LENGTH - 1, K))
        ids = rng.permuted((np.cumsum(steps, axis=1) - 1).astype(np.int32), axis=1)
        logits = -np.sort(rng.exponential(3, ids.shape).astype(np.float32), axis=1)
        targets = SoftTargets(ids, logits - logits[:, :1], rng.normal(-2, 1, (len(ids), 1)).astype(np.float32), (1.0,))
        tokens = rng.integers(0, VOCABULARY, LENGTH).astype(np.int32)
        rows.append(Row(Sequence(number, tokens, mask, np.array([number]), run, isolated=False), targets))
    return rows


def make_cache(store: Store, megabytes: int, shard_rows: int) -> None:
    made_from = {"benchmark": [megabytes, shard_rows]}
    key = fingerprint(made_from)
    entries: list[ShardEntry] = []
    while sum(entry.bytes for entry in entries) < megabytes * 1e6:
        number = len(entries)
        data, _ = shard.encode(synthetic_rows(number * shard_rows, shard_rows), "plain-1", key, number)
        store.put(shard_name(number), data)
        entries.append(ShardEntry(number, shard_rows, shard_rows * (LENGTH - 1), len(data), sha256(data)))
    CacheManifest(
        made_from=made_from, fingerprint=key, codec="plain-1", teacher="none", revision=None,
        tokenizer_sha256="0" * 64, vocabulary_size=VOCABULARY, packing="none", method="top_k", k=K, temperatures=[1.0],
        shards=len(entries), index=put_index(store, entries), bytes_by_part=dict.fromkeys(PARTS, 0), mean_kept_mass=1.0,
    ).put(store)  # fmt: skip


def measure(folder: str, jobs: int) -> dict[str, Any]:
    """The best of `RUNS` runs, and the machine's load just before it."""
    best: dict[str, Any] = {}
    for _ in range(RUNS):
        load, begun, before = os.getloadavg()[0], time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "distributed_kd.cli", "verify", folder, "--json", "--jobs", str(jobs)]
        done = subprocess.run(command, capture_output=True, text=True)
        seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(done.stderr)
        verdict = json.loads(done.stdout)
        row = {
            "jobs": jobs, "shards": verdict["shards"], "bytes": verdict["bytes"],
            "megabytes_per_second": verdict["megabytes_per_second"], "seconds": seconds,
            "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "load_before": load,
        }  # fmt: skip
        if not best or row["megabytes_per_second"] > best["megabytes_per_second"]:
            best = row
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--shard-rows", type=int, default=64)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", help="where the cache is kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = Store(options.folder or temporary)
        manifest = CacheManifest.read(store)
        if manifest is None:
            make_cache(store, options.megabytes, options.shard_rows)
            manifest = CacheManifest.read(store)
        assert manifest is not None
        for number in range(manifest.shards):
            store.read(shard_name(number))
        report = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "pyarrow": pa.__version__},
            "rows": [measure(store.uri, jobs) for jobs in options.jobs],
        }
    if options.json:
        print(json.dumps(report))
        return
    print(f"{report['machine']}; {', '.join(f'{name} {v}' for name, v in report['versions'].items())}")
    print(f"{'jobs':>5} {'shards':>7} {'MB':>7} {'MB/s':>7} {'seconds':>8} {'processor':>10} {'load before':>12}")
    for row in report["rows"]:
        print(
            f"{row['jobs']:5} {row['shards']:7} {row['bytes'] / 1e6:7.0f} {row['megabytes_per_second']:7.1f} "
            f"{row['seconds']:8.1f} {row['processor_seconds']:10.1f} {row['load_before']:12.1f}"
        )


if __name__ == "__main__":
    main()
