"""What opening a cache of very many shards takes: seconds, and the peak memory of a process that does nothing else.

    python benchmarks/index.py [--shards 10000 100000 1000000] [--json]

Writes a finished cache's manifest and index (sizes drawn at random, digests as incompressible as real ones; opening
reads no shard) into a temporary folder, then opens it in a fresh process and inspects it. `written` is the time from
a list of entries to the index on disk, `before` the memory of the process once everything is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa

from distributed_kd.cache.manifest import PARTS, CacheManifest
from distributed_kd.store.digest import fingerprint
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, put_index

# VmHWM, since what getrusage calls the peak begins at that of the process that started this one.
_IN_A_FRESH_PROCESS = """
import json, sys, time
from distributed_kd import cache
from distributed_kd.cache.inspect import inspect

def peak():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))

before, begun = peak(), time.perf_counter()
opened = cache.open(sys.argv[1])
open_seconds, open_peak = time.perf_counter() - begun, peak()
begun = time.perf_counter()
assert inspect(sys.argv[1])["shards"] == len(opened.entries)
print(json.dumps({
    "open_seconds": open_seconds, "inspect_seconds": time.perf_counter() - begun,
    "before_bytes": before, "open_peak_bytes": open_peak, "inspect_peak_bytes": peak(),
}))
"""


def make_cache(store: Store, shards: int) -> float:
    """Writes the manifest and the index; seconds that the index took."""
    rng = np.random.default_rng(0)
    numbers = [rng.integers(low, high, shards).tolist() for low, high in ((1, 257), (1, 1 << 18), (1, 1 << 26))]
    digests = rng.bytes(32 * shards).hex()
    entries = [
        ShardEntry(n, *sizes, sha256=digests[64 * n : 64 * n + 64])
        for n, sizes in enumerate(zip(*numbers, strict=True))
    ]
    begun = time.perf_counter()
    reference = put_index(store, entries)
    seconds = time.perf_counter() - begun
    made_from = {"benchmark": shards}
    CacheManifest(
        made_from=made_from, fingerprint=fingerprint(made_from), codec="plain-1", teacher="none", revision=None,
        tokenizer_sha256="0" * 64, vocabulary_size=50_000, packing="none", method="top_k", k=64, temperatures=[1.0],
        shards=shards, index=reference, bytes_by_part=dict.fromkeys(PARTS, 0), mean_kept_mass=1.0,
    ).put(store)  # fmt: skip
    return seconds


def measure(shards: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        put_seconds = make_cache(store, shards)
        done = subprocess.run([sys.executable, "-c", _IN_A_FRESH_PROCESS, folder], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        size = len(store.read("index.arrow"))
    return {"shards": shards, "index_bytes": size, "put_seconds": put_seconds, **json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "pyarrow": pa.__version__},
        "rows": [measure(shards) for shards in options.shards],
    }
    if options.json:
        print(json.dumps(report))
        return
    print(f"{report['machine']}; {', '.join(f'{name} {v}' for name, v in report['versions'].items())}")
    print(
        f"{'shards':>10} {'index MB':>9} {'written s':>10} {'open s':>8} {'inspect s':>10}"
        f" {'before MB':>10} {'peak MB':>8}"
    )
    for row in report["rows"]:
        seconds = f"{row['put_seconds']:10.2f} {row['open_seconds']:8.3f} {row['inspect_seconds']:10.3f}"
        memory = f"{row['before_bytes'] / 1e6:10.0f} {row['open_peak_bytes'] / 1e6:8.0f}"
        print(f"{row['shards']:10,} {row['index_bytes'] / 1e6:9.1f} {seconds} {memory}")


if __name__ == "__main__":
    main()
