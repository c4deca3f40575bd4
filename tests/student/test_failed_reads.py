"""A shard that cannot be read in training is read again, then named in one line by the step that needs it."""

from __future__ import annotations

import threading
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from distributed_kd import cache
from distributed_kd.cache.reader import LogitCache
from distributed_kd.errors import DkdError, RequestError, StoreError
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import shard_name
from distributed_kd.student.order import GlobalOrder
from distributed_kd.student.stream import Stream
from tests.cache.caches import TEMPERATURES, make_cache
from tests.commands import dkd, said, write_recipe

BAD = 2  # the shard that is not as it should be
BATCH, EPOCH = 2, 10  # steps


class FaultyStore(Store):
    """The local folder, whose driver does to the bad shard's file what `faults` say, one for each time it is read."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.faults: list[str] = []
        self.reads = 0
        self.fs = _FaultyFiles(self)


class _FaultyFiles(LocalFileSystem):  # type: ignore[misc]
    cachable = False

    def __init__(self, store: FaultyStore) -> None:
        super().__init__()
        self.store = store

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **said: Any) -> bytes:
        data: bytes = super().cat_file(path, start, end, **said)
        if not path.endswith(shard_name(BAD)):
            return data
        self.store.reads += 1
        fault = self.store.faults.pop(0) if self.store.faults else "none"
        if fault == "error":
            raise OSError(5, "Input/output error")
        flipped = data[:100] + bytes([data[100] ^ 1]) + data[101:]
        return {"none": data, "flipped": flipped, "cut": data[:-9], "longer": data + b"x"}[fault]


@pytest.fixture
def store(tmp_path: Path) -> FaultyStore:
    make_cache(Store(str(tmp_path)), "plain-1", shards=5, rows=4)
    return FaultyStore(str(tmp_path))


def order_of(opened: LogitCache) -> GlobalOrder:
    return GlobalOrder(opened.manifest.fingerprint, 0, opened.entries.rows, BATCH)


def train(
    opened: LogitCache, rank: int = 0, world: int = 1, steps: int = EPOCH
) -> tuple[list[list[int]], DkdError | None]:
    """(the ids of each step that could be taken, sorted, what ended it)."""
    stream = Stream(opened, order_of(opened), rank=rank, world=world, micro_batch=1, temperature=TEMPERATURES[0])
    taken: list[list[int]] = []
    try:
        for step in stream.steps(0, steps):
            taken.append(sorted(one for batch in step for one in batch.sequence_ids))
    except DkdError as error:
        return taken, error
    return taken, None


def first_bad_step(opened: LogitCache, rank: int = 0, world: int = 1) -> int:
    order = order_of(opened)
    return next(step for step in count() if BAD in opened.entries.places_of(order.rank_batch(step, rank, world)))


def damage(folder: Path) -> None:
    file = folder / shard_name(BAD)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 8
    file.write_bytes(data)


@pytest.mark.parametrize("fault", ["flipped", "cut", "longer"])
def test_a_transfer_that_went_wrong_once_is_made_again(store: FaultyStore, fault: str) -> None:
    expected = train(cache.open(store))[0]
    store.faults, store.reads = [fault], 0
    taken, error = train(cache.open(store))
    assert error is None
    assert taken == expected
    assert not store.faults
    assert store.reads >= 2


@pytest.mark.parametrize("fault", ["flipped", "cut", "longer"])
def test_bytes_that_are_wrong_twice_end_it_with_one_line_where_the_step_is_due(store: FaultyStore, fault: str) -> None:
    store.faults = [fault] * 2
    opened = cache.open(store)
    taken, error = train(opened)
    assert taken == [sorted(order_of(opened).batch(step).tolist()) for step in range(first_bad_step(opened))]
    assert isinstance(error, RequestError)
    assert str(error).startswith(f"{store.uri}/{shard_name(BAD)} is damaged")
    assert "\n" not in str(error)
    assert store.reads == 2


def test_a_store_that_fails_is_one_line_where_the_step_is_due(store: FaultyStore) -> None:
    """The driver has asked again by then; what the store says is not asked for once more."""
    store.faults = ["error"]
    opened = cache.open(store)
    taken, error = train(opened)
    assert len(taken) == first_bad_step(opened)
    assert isinstance(error, StoreError)
    assert f"{store.uri}/{shard_name(BAD)} cannot be read" in str(error)
    assert "\n" not in str(error)
    assert store.reads == 1


def test_a_shard_that_is_gone_is_asked_for_once(store: FaultyStore) -> None:
    (Path(store.uri) / shard_name(BAD)).unlink()
    opened = cache.open(store)
    taken, error = train(opened)
    assert len(taken) == first_bad_step(opened)
    assert str(error).startswith(f"{store.uri}/{shard_name(BAD)} is missing")


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_ends_at_its_own_first_step_with_the_shard_and_leaves_no_thread(
    store: FaultyStore, rank: int
) -> None:
    damage(Path(store.uri))
    opened = cache.open(store)
    taken, error = train(opened, rank, 2, steps=10 * EPOCH)
    assert len(taken) == first_bad_step(opened, rank, 2)
    assert str(error).startswith(f"{store.uri}/{shard_name(BAD)} is damaged")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("cache-reader", "shard-reader"))]


@pytest.mark.slow
def test_all_ranks_of_a_training_end_with_the_line_of_the_one_that_met_it(
    captured_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Two ranks; the other one waits in a collective by then. Mended, the training goes on to its end."""
    captured_recipe["trainer"] |= {
        "processes": 2,
        "global_batch": 4,
        "micro_batch": 1,
        "steps": 40,
        "checkpoint_every": 1,
    }
    recipe = write_recipe(tmp_path, captured_recipe)
    folder = Path(captured_recipe["workdir"]) / "cache"
    good = (folder / shard_name(BAD)).read_bytes()
    damage(folder)
    done = dkd("train", recipe)
    assert done.returncode == RequestError.exit_code, done.stderr
    assert f"{folder}/{shard_name(BAD)} is damaged" in said(done)
    (folder / shard_name(BAD)).write_bytes(good)
    done = dkd("train", recipe)
    assert done.returncode == 0, done.stderr
