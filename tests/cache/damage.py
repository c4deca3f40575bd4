"""Damage to a cache, one piece at a time, and what may come of it: a refusal that names a file, or the same data."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from distributed_kd import cache
from distributed_kd.cache.inspect import inspect
from distributed_kd.cache.manifest import CacheManifest
from distributed_kd.cache.shard import Row
from distributed_kd.cache.verify import verify
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import Store
from tests.cache.caches import make_cache

MOST_SECONDS = 2.0  # of processor time: other work on the machine is not the reader's
MUST_BE_NOTICED = ("manifest.json", "index.arrow", "tables.bin", "shards/")  # the rest is not read once it is finished


class Target:
    """A small finished cache in `folder`, what it holds, and what its files were."""

    def __init__(self, folder: Path, codec: str, finished: bool = True) -> None:
        self.folder = folder
        self.store = Store(str(folder))
        make_cache(self.store, codec, method="full" if codec == "dense-1" else "top_k")
        self.rows = [cache.open(self.store)[n] for n in range(12)]
        self.finished = finished
        if not finished:
            manifest = CacheManifest.read(self.store)
            assert manifest is not None
            manifest.model_copy(update={"index": None}).put(self.store)
            self.store.delete("index.arrow")
            self.facts = inspect(self.store.uri)
        self.files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    @contextmanager
    def changed(self, files: dict[str, bytes | None]) -> Iterator[None]:
        """These files are these bytes, or not there, for a while."""
        try:
            for name, data in files.items():
                if data is None:
                    (self.folder / name).unlink()
                else:
                    (self.folder / name).write_bytes(data)
            yield
        finally:
            for name in files:
                if name in self.files:
                    (self.folder / name).write_bytes(self.files[name])
                else:
                    (self.folder / name).unlink(missing_ok=True)

    def outcome(self, files: dict[str, bytes | None], deep: bool = False) -> str:
        """`refused` or `same`. Raises `AssertionError` when anything else comes of it.

        deep: also what `verify` says, which reads everything again.
        """
        with self.changed(files):
            begun = time.process_time()
            found = self._read()
            assert time.process_time() - begun < MOST_SECONDS, "too long"
            if deep or not self.finished:
                found = self._verify(files, found)
        if self.finished and any(name.startswith(MUST_BE_NOTICED) for name in files):
            assert found == "refused", f"not noticed: {list(files)}"
        return found

    def _read(self) -> str:
        try:
            if not self.finished:
                facts = inspect(self.store.uri)
                if facts["missing_shards"]:  # a receipt that is gone is a shard that is not done
                    return "refused"
                assert facts == self.facts, "other receipts were believed"
                return "same"
            opened = cache.open(self.store)
            for index, expected in enumerate(self.rows):
                _assert_equal(opened[index], expected)
            assert len(opened) == len(self.rows)
        except RequestError as error:
            said = str(error)
        else:
            return "same"
        assert str(self.folder) in said, f"no file is named: {said}"
        assert "\n" not in said
        return "refused"

    def _verify(self, files: dict[str, bytes | None], found: str) -> str:
        try:
            verdict = verify(self.store, 1)
        except RequestError:
            assert "manifest.json" in files
            return "refused"
        of_shards = any(name.startswith(("shards/", "tables.bin")) for name in files)
        assert verdict.all_good == (found == "same" and not of_shards), files.keys()
        return "same" if verdict.all_good else "refused"


def _assert_equal(found: Row, expected: Row) -> None:
    for one, other in ((found.sequence, expected.sequence), (found.targets, expected.targets)):
        for name, value in vars(other).items():
            assert np.array_equal(getattr(one, name), value), name


def flips(files: dict[str, bytes], count: int, drawn: random.Random) -> Iterator[dict[str, bytes | None]]:
    """One bit of one file, each file as likely as another."""
    names = sorted(files)
    for number in range(count):
        name = names[number % len(names)]
        data = bytearray(files[name])
        bit = drawn.randrange(8 * len(data))
        data[bit >> 3] ^= 1 << (bit & 7)
        yield {name: bytes(data)}


def truncations(files: dict[str, bytes], count: int, drawn: random.Random) -> Iterator[dict[str, bytes | None]]:
    """A file cut anywhere, to nothing, or taken away; or some bytes more."""
    names = sorted(files)
    for number in range(count):
        name = names[number % len(names)]
        data = files[name]
        kind = drawn.randrange(10)
        longer = data + drawn.randbytes(drawn.randrange(1, 9))
        yield {
            name: None
            if kind == 0
            else b""
            if kind == 1
            else longer
            if kind == 2
            else data[: drawn.randrange(len(data))]
        }


def swaps(files: dict[str, bytes], count: int, drawn: random.Random) -> Iterator[dict[str, bytes | None]]:
    """Two files in each other's place, one over another, or one under another's name and gone from its own."""
    names = sorted(files)
    for _ in range(count):
        first, second = drawn.sample(names, 2)
        kind = drawn.randrange(3)
        if kind == 0:
            yield {first: files[second], second: files[first]}
        elif kind == 1:
            yield {first: files[second]}
        else:
            yield {first: files[second], second: None}


KINDS: dict[str, Callable[[dict[str, bytes], int, random.Random], Iterator[dict[str, bytes | None]]]] = {
    "flips": flips, "truncations": truncations, "swaps": swaps,
}  # fmt: skip


def run(target: Target, kind: str, count: int, seed: int, deep_every: int = 20) -> Counter[str]:
    """`count` pieces of damage of a kind; how many were refused and how many gave the same data."""
    outcomes: Counter[str] = Counter()
    for number, files in enumerate(KINDS[kind](target.files, count, random.Random(seed))):
        if all(files[name] == target.files.get(name) for name in files):
            continue
        outcomes[target.outcome(files, deep=target.finished and number % deep_every == 0)] += 1
    return outcomes
