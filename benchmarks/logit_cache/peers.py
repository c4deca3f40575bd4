"""The same arrays in the chunks of other streaming libraries: MosaicML Streaming's MDS shards and litData's chunks.

    python benchmarks/logit_cache/peers.py NAME FOLDER [CHUNK_BYTES]

Needs numpy and the library alone, so that it runs under another interpreter than the benchmark, which calls it.
FOLDER holds one `.npz` a case, with arrays whose first axis is sequences. A sample is one sequence, its matrices
[511, K] filled where a position keeps fewer ids. Prints one JSON object by case: the bytes of all files, index
included, and processor seconds of writing, and of reading every sample in order, of all threads and of children that
have ended; the best of `RUNS` runs after one that warms up. zstd is at level 9, chunks are of 64 MiB if not said, the
rest is as each library has it. Exits with `MISSING` where the library is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

PACKAGES = {"MDS + zstd": "mosaicml-streaming==0.13.0", "litData + zstd": "litdata==0.2.76"}
COMPRESSION = "zstd:9"
CHUNK_BYTES = 1 << 26
MISSING = 3
RUNS = 3

Sample = dict[str, np.ndarray]


def write_mds(samples: list[Sample], folder: Path, chunk_bytes: int) -> None:
    from streaming import MDSWriter

    columns = {name: f"ndarray:{a.dtype}:{','.join(map(str, a.shape))}" for name, a in samples[0].items()}
    with MDSWriter(out=str(folder), columns=columns, compression=COMPRESSION, size_limit=chunk_bytes) as writer:
        for sample in samples:
            writer.write(sample)


def read_mds(folder: Path) -> Iterator[Sample]:
    from streaming import StreamingDataset

    return iter(StreamingDataset(local=str(folder), shuffle=False, batch_size=1))


def write_litdata(samples: list[Sample], folder: Path, chunk_bytes: int) -> None:
    """What `litdata.optimize` runs in each of its processes, without starting them."""
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), compression=COMPRESSION, chunk_bytes=chunk_bytes)
    for index, sample in enumerate(samples):
        cache[index] = sample
    cache.done()
    cache.merge()


def read_litdata(folder: Path) -> Iterator[Sample]:
    from litdata import StreamingDataset

    return iter(StreamingDataset(str(folder), shuffle=False))


LAYOUTS: dict[str, tuple[Callable[[list[Sample], Path, int], None], Callable[[Path], Iterator[Sample]]]] = {
    "MDS + zstd": (write_mds, read_mds),
    "litData + zstd": (write_litdata, read_litdata),
}


def processor_seconds() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def measure(name: str, samples: list[Sample], chunk_bytes: int) -> dict[str, float]:
    write, read = LAYOUTS[name]
    encode, decode, size = float("inf"), float("inf"), 0
    for turn in range(1 + RUNS):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data"
            begin = processor_seconds()
            write(samples, path, chunk_bytes)
            written = processor_seconds()
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            copy = shutil.copytree(path, Path(folder) / "copy")  # a library may unpack in place
            opened = processor_seconds()
            found = list(read(copy))
            done = processor_seconds()
            for sample, expected in zip(found, samples, strict=True):
                for key, array in expected.items():
                    np.testing.assert_array_equal(sample[key], array)
            if turn:
                encode, decode = min(encode, written - begin), min(decode, done - opened)
    return {"bytes": size, "encode_seconds": encode, "decode_seconds": decode}


def main() -> None:
    name, folder, *said = sys.argv[1:]
    if importlib.util.find_spec("streaming" if name.startswith("MDS") else "litdata") is None:
        raise SystemExit(MISSING)
    figures = {}
    for file in sorted(Path(folder).glob("*.npz")):
        arrays = dict(np.load(file))
        count = len(next(iter(arrays.values())))
        samples = [{key: np.ascontiguousarray(a[n]) for key, a in arrays.items()} for n in range(count)]
        figures[file.stem] = measure(name, samples, int(said[0]) if said else CHUNK_BYTES)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
