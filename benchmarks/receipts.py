"""How long a capture of very many shards takes to know again what is done, and in how much memory.

    python benchmarks/receipts.py [--shards 10000 100000 1000000] [--single 100000] [--latency 0.02] [--json]

Writes the receipts of a capture that lacks its last shard, single (up to `--single` shards: a file each, as workers put
them) or folded (a file a thousand), and reads them in a fresh process: from the local folder, and through a store that
answers each request after `--latency` seconds, a listing once for each thousand names, as an object store does, with
what its client says of a file. That store's client is Python's asyncio alone: a real one computes more for a request.
`peak` is what the process grew by at most, `after` what it has left of that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

import fsspec
import numpy as np
from fsspec.asyn import AsyncFileSystem
from process_memory import memory

from distributed_kd.cache.manifest import PARTS, RECEIPTS, Receipt
from distributed_kd.cache.receipts import GROUP, Receipts
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry

KEY = "f" * 64


class Distant(AsyncFileSystem):
    """The local folder, each request to it answered after `latency` seconds."""

    protocol = "distant"
    latency = 0.02

    async def _cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        await asyncio.sleep(self.latency)
        with open(path, "rb") as file:
            return file.read()[start:end]

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]]:
        names = os.listdir(path)
        await asyncio.sleep(self.latency * -(-len(names) // 1000))
        return [
            {
                "Key": f"{path}/{name}", "name": f"{path}/{name}", "Size": 500, "size": 500, "type": "file",
                "ETag": f'"{number:032x}"', "LastModified": time.time(), "StorageClass": "STANDARD",
            }
            for number, name in enumerate(names)
        ]  # fmt: skip


def write(folder: str, shards: int, is_folded: bool) -> None:
    """As a capture does, without waiting for the disk."""
    os.makedirs(f"{folder}/{RECEIPTS}")
    receipts = Receipts(KEY, shards)
    rng = np.random.default_rng(0)
    for number in range(shards - 1):
        digest = rng.bytes(32).hex()
        sizes = rng.integers(1, 1 << 24, len(PARTS)).tolist()
        entry = ShardEntry(number, 256, 131_072, sum(sizes), digest)
        receipt = Receipt(KEY, entry, dict(zip(PARTS, sizes, strict=True)), 131_072 * float(rng.random()))
        receipts[number] = receipt
        if is_folded and number < shards // GROUP * GROUP:
            receipts.fold(Store(folder))
        if not is_folded or number >= (shards - 1) // GROUP * GROUP:
            with open(f"{folder}/{RECEIPTS}/{number:08d}.json", "wb") as file:
                file.write(receipt.to_bytes())


def read(uri: str, shards: int) -> dict[str, Any]:
    store = Store(uri)
    before, begun = memory("VmRSS"), time.perf_counter()
    receipts = Receipts.read_all(store, KEY, shards)
    missing = receipts.missing.tolist()
    seconds = time.perf_counter() - begun
    assert missing == [shards - 1]
    return {
        "seconds": seconds, "peak_bytes": memory("VmHWM") - before, "after_bytes": memory("VmRSS") - before,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--single", type=int, default=100_000, help="shards of the largest folder of single files")
    parser.add_argument("--latency", type=float, default=Distant.latency, help="seconds until a request is answered")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--read", help=argparse.SUPPRESS)  # one row, in this process
    options = parser.parse_args()
    Distant.latency = options.latency
    fsspec.register_implementation("distant", Distant)
    if options.read:
        print(json.dumps(read(options.read, options.shards[0])))
        return
    rows = []
    for shards in options.shards:
        for is_folded in [False, True] if shards <= options.single else [True]:
            with tempfile.TemporaryDirectory() as folder:
                write(folder, shards, is_folded)
                for where in ("local", "distant"):
                    command = [sys.executable, __file__, "--shards", str(shards), "--latency", str(options.latency)]
                    uri = folder if where == "local" else f"distant://{folder}"
                    load = os.getloadavg()[0]
                    done = subprocess.run([*command, "--read", uri], capture_output=True, text=True)
                    if done.returncode:
                        raise SystemExit(done.stderr)
                    row = {"shards": shards, "files": "folded" if is_folded else "single", "store": where}
                    rows.append(row | json.loads(done.stdout) | {"load_before": load})
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "fsspec": fsspec.__version__},
        "latency": options.latency,
        "rows": rows,
    }
    if options.json:
        print(json.dumps(report))
        return
    print(f"{report['machine']}; {', '.join(f'{name} {v}' for name, v in report['versions'].items())}")
    print(f"{'shards':>10} {'files':>7} {'store':>8} {'seconds':>8} {'peak MB':>8} {'after MB':>9} {'load before':>12}")
    for row in rows:
        print(
            f"{row['shards']:10,} {row['files']:>7} {row['store']:>8} {row['seconds']:8.2f}"
            f" {row['peak_bytes'] / 1e6:8.1f} {row['after_bytes'] / 1e6:9.1f} {row['load_before']:12.1f}"
        )


if __name__ == "__main__":
    main()
