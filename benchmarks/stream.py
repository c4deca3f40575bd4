"""How fast training's reader gives batches, and how long a step waits for it where the store is far away.

    python benchmarks/stream.py --cache runs/demo/cache [--positions 200000] [--peers PYTHON] [--json]

The rows of a cache (`make demo` leaves one) are repeated, each with an id of its own, until there are so many
positions, and written anew with each codec, in shards of which none has a row twice: zstd would find the copy.
`positions_per_second`: read, checked, decoded and collated by one rank, a second of a processor, all threads together.
The peers read the same ids and float16 logits as arrays of a sequence, with libraries that stand in an environment of
their own (`benchmarks/logit_cache/peers.py`), in chunks of as many sequences; they neither decode nor collate.
`data_wait`: the share of a step that waits for the reader, its consumer asleep for a batch's positions at `--pace` a
second, over an HTTP server on loopback that answers after 50 ms and then gives 100 MB/s a connection; `first_step` is
the first one's wait, in seconds, not in that share. All ways take turns in `--rounds` rounds, after one that warms up,
and figures are medians over them; `time_ratio` is processor time a position against plain-1 in the same round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import torch
from logit_cache.peers import MISSING, PACKAGES

from distributed_kd import cache
from distributed_kd.cache import codecs, shard
from distributed_kd.cache.manifest import CacheManifest, put_tables
from distributed_kd.cache.reader import LogitCache
from distributed_kd.cache.shard import Row
from distributed_kd.store.digest import sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, put_index, shard_name
from distributed_kd.student.order import GlobalOrder
from distributed_kd.student.stream import Stream

CODECS = ("compact-1", "plain-1")
SHARD_ROWS, BATCH, MICRO_BATCH = 64, 32, 8  # at most
LATENCY, RATE = 0.05, 100e6  # seconds, and bytes a second of a connection


def write_cache(store: Store, rows: list[Row], shard_rows: int, like: CacheManifest, codec: str) -> LogitCache:
    tables = None
    if codecs.find(codec).build_tables is not None:
        tables = shard.build_tables(rows[:shard_rows], codec, like.vocabulary_size, 0)
    entries = []
    for number, begin in enumerate(range(0, len(rows), shard_rows)):
        own = rows[begin : begin + shard_rows]
        data, _ = shard.encode(own, codec, like.fingerprint, number, tables)
        store.put(shard_name(number), data)
        entries.append(ShardEntry(number, len(own), sum(len(row.targets) for row in own), len(data), sha256(data)))
    known = {
        "codec": codec, "shards": len(entries), "index": put_index(store, entries), "merge": None,
        "tables": None if tables is None else put_tables(store, tables),
    }  # fmt: skip
    like.model_copy(update=known).put(store)
    return cache.open(store)


def repeated(rows: list[Row], positions: int) -> list[Row]:
    times = -(-positions // sum(len(row.targets) for row in rows))
    return [Row(replace(row.sequence, sequence_id=number), row.targets) for number, row in enumerate(rows * times)]


def stream_of(opened: LogitCache) -> Any:
    """(an epoch's batches, how many there are)."""
    order = GlobalOrder(opened.manifest.fingerprint, 0, opened.entries.rows, BATCH)
    temperature = opened.manifest.temperatures[0]
    stream = Stream(opened, order, rank=0, world=1, micro_batch=MICRO_BATCH, temperature=temperature)
    steps = len(opened) // BATCH
    return stream.steps(0, steps), steps


def positions_per_second(opened: LogitCache) -> float:
    begun, positions = time.process_time(), 0
    for batches in stream_of(opened)[0]:
        positions += sum(len(batch.targets) for batch in batches)
    return positions / (time.process_time() - begun)


class Peers:
    """The same numbers as arrays in `folder`, rows of other lengths than the first left out."""

    def __init__(self, rows: list[Row], shard_rows: int, python: str, folder: str) -> None:
        self.length = len(rows[0].targets)
        own = [row.targets for row in rows if len(row.targets) == self.length]
        self.sequences, self.python, self.folder = len(own), python, folder
        arrays = {
            "ids": np.stack([targets.ids for targets in own]),
            "logits": np.stack([targets.logits.astype(np.float16) for targets in own]),
            "tail_odds": np.stack([targets.tail_odds for targets in own]),
        }
        self.chunk_bytes = shard_rows * sum(array[0].nbytes for array in arrays.values())
        np.savez(Path(folder) / "case.npz", **arrays)

    def positions_per_second(self, name: str) -> float:
        script = Path(__file__).parent / "logit_cache" / "peers.py"
        command = [self.python, str(script), name, self.folder, str(self.chunk_bytes)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == MISSING:
            raise SystemExit(f"{self.python} has no {PACKAGES[name]}; install it there")
        if done.returncode:
            raise SystemExit(done.stderr)
        return self.sequences * self.length / float(json.loads(done.stdout)["case"]["decode_seconds"])


class _Far(BaseHTTPRequestHandler):
    """Files of a folder, a connection each: nothing for `LATENCY`, then `RATE` bytes a second."""

    folder = Path()

    def do_GET(self) -> None:
        time.sleep(LATENCY)
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        begin, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(begin) : int(end) + 1 if end else len(data)]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {begin}-{int(begin) + len(part) - 1}/{len(data)}")
        self.end_headers()
        for at in range(0, len(part), 1 << 18):
            piece = part[at : at + (1 << 18)]
            time.sleep(len(piece) / RATE)
            self.wfile.write(piece)

    def do_HEAD(self) -> None:
        time.sleep(LATENCY)
        path = self.folder / self.path.lstrip("/")
        self.send_response(200 if path.is_file() else 404)
        self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        return


def serve(folder: str, ready: Any) -> None:
    _Far.folder = Path(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Far)
    ready.send(server.server_port)
    server.serve_forever()


def data_wait(folder: str, pace: int) -> dict[str, float]:
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, sender), daemon=True)
    server.start()
    opened = cache.open(f"http://127.0.0.1:{receiver.recv()}")
    batches, steps = stream_of(opened)
    waits, worked = [], 0.0
    for _ in range(steps):
        begun = time.perf_counter()
        positions = sum(len(batch.targets) for batch in next(batches))
        waits.append(time.perf_counter() - begun)
        time.sleep(positions / pace)
        worked += positions / pace
    batches.close()
    server.kill()
    return {"data_wait": sum(waits[1:]) / (sum(waits[1:]) + worked), "first_step": waits[0], "steps": steps}


def report(options: argparse.Namespace) -> dict[str, Any]:
    source = cache.open(options.cache)
    rows = next(iter(source.batches(len(source))))
    held, shard_rows = repeated(rows, options.positions), min(SHARD_ROWS, len(rows))
    positions = sum(len(row.targets) for row in held)
    processors = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        opened = {
            codec: write_cache(Store(f"{folder}/{codec}"), held, shard_rows, source.manifest, codec)
            for codec in CODECS
        }  # fmt: skip
        peers = Peers(held, shard_rows, options.peers, folder) if options.peers else None

        def one_round() -> dict[str, Any]:
            os.sched_setaffinity(0, {min(processors)})  # threads that are started now stay there
            pa.set_cpu_count(1)
            found: dict[str, Any] = {codec: positions_per_second(own) for codec, own in opened.items()}
            os.sched_setaffinity(0, processors)
            if peers is not None:
                found |= {package: peers.positions_per_second(name) for name, package in PACKAGES.items()}
            waits = {(codec, pace): data_wait(f"{folder}/{codec}", pace) for codec in CODECS for pace in options.pace}
            return found | waits

        one_round()
        rounds = [one_round() for _ in range(options.rounds)]

    def median(key: Any, figure: Any = lambda found: found) -> float:
        return statistics.median(figure(own[key]) for own in rounds)

    def speed_of(name: str) -> dict[str, Any]:
        ratio = statistics.median(own["plain-1"] / own[name] for own in rounds)
        return {"name": name, "positions_per_second": median(name), "time_ratio": ratio}

    found_rows: list[dict[str, Any]] = []
    for codec in CODECS:
        found_rows.append(speed_of(codec) | {"bytes_per_position": int(opened[codec].entries.bytes.sum()) / positions})
        for pace in options.pace:
            waits = {
                key: median((codec, pace), lambda found, key=key: found[key]) for key in ("data_wait", "first_step")
            }
            found_rows.append({"name": f"{codec}, {pace:,} positions a second asked for", "pace": pace, **waits})
    found_rows += [speed_of(package) for package in (PACKAGES.values() if peers else ())]
    return {
        "machine": f"{platform.machine()}, {len(processors)} processors, load {os.getloadavg()[0]:.1f}",
        "versions": {"torch": torch.__version__, "pyarrow": pa.__version__, "numpy": np.__version__},
        "positions": positions, "k": source.manifest.k, "shard_sequences": shard_rows, "rounds": options.rounds,
        "rows": found_rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--positions", type=int, default=200_000)
    parser.add_argument("--pace", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", help="a Python that has MosaicML Streaming and litData")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = report(options)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['machine']}; {found['positions']:,} positions, K = {found['k']}")
    columns = ("positions_per_second", "time_ratio", "bytes_per_position", "data_wait", "first_step")
    print(f"{'':44}" + "".join(f"{name:>22}" for name in columns))
    for row in found["rows"]:
        print(f"{row['name']:44}" + "".join(f"{row[name]:22,.4g}" if name in row else f"{'':22}" for name in columns))


if __name__ == "__main__":
    main()
