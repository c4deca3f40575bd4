"""Shards are read once a span, ahead of their use within a bound, and let go after their last use."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from distributed_kd import cache
from distributed_kd.cache.reader import LogitCache
from distributed_kd.errors import RequestError
from distributed_kd.store.disk_cache import DiskCache
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import shard_name
from distributed_kd.student import shard_tables
from distributed_kd.student.order import GlobalOrder
from distributed_kd.student.shard_tables import ShardTables
from distributed_kd.student.stream import Stream
from tests.cache.caches import TEMPERATURES, make_cache


class Counting:
    """Gives what it is asked for, and keeps count."""

    def __init__(self, wait: float = 0.0) -> None:
        self.asked: list[int] = []
        self.wait = wait

    def fetch(self, place: int) -> Any:
        self.asked.append(place)
        time.sleep(self.wait)
        return f"table {place}"


@given(spans=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), min_size=1, max_size=3))
def test_what_is_planned_can_be_taken_in_its_order_and_nothing_is_left(spans: list[list[int]]) -> None:
    store = Counting()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_tables, "_AHEAD_BYTES", 3)
        tables = ShardTables(store.fetch, np.ones(10, np.int64))
        for number, places in enumerate(spans):
            tables.plan(number, np.array(places))
        for number, places in enumerate(spans):
            for place in places:
                assert tables.take(number, place, 1) == f"table {place}"
        tables.close()
    assert not tables._tables and not tables._uses and tables._ahead == 0
    # Once a span, in the order of first use; threads may be a few apart.
    assert sorted(store.asked) == sorted(place for places in spans for place in set(places))


def test_no_more_is_read_ahead_than_the_bound_and_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_tables, "_AHEAD_BYTES", 250)
    store = Counting()
    tables = ShardTables(store.fetch, np.full(20, 100, np.int64))
    tables.plan(0, np.arange(20))
    for place in range(20):
        wanted = min(20, place + 3)
        _until(lambda: len(store.asked) >= wanted)  # noqa: B023 - called before the next one
        time.sleep(0.02)
        assert len(store.asked) == wanted
        tables.take(0, place, 1)
    tables.close()


def test_a_slow_store_is_asked_for_several_at_once() -> None:
    most = now = 0
    lock = threading.Lock()

    def fetch(place: int) -> int:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        return place

    tables = ShardTables(fetch, np.ones(30, np.int64))  # type: ignore[arg-type]
    tables.plan(0, np.arange(30))
    assert [tables.take(0, place, 1) for place in range(30)] == list(range(30))
    tables.close()
    assert 4 <= most <= shard_tables._THREADS


def test_an_error_comes_where_its_shard_is_taken_and_what_is_closed_reads_no_more() -> None:
    store = Counting(wait=0.02)

    def fetch(place: int) -> Any:
        if place == 3:
            raise RequestError("shard 3 is damaged")
        return store.fetch(place)

    tables = ShardTables(fetch, np.ones(500, np.int64))
    tables.plan(0, np.arange(500))
    assert [tables.take(0, place, 1) for place in range(3)] == ["table 0", "table 1", "table 2"]
    with pytest.raises(RequestError, match="shard 3 is damaged"):
        tables.take(0, 3, 1)
    tables.close()
    asked = len(store.asked)
    assert asked < 100
    time.sleep(0.1)
    assert len(store.asked) == asked


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> LogitCache:
    store = Store(str(tmp_path_factory.mktemp("cache")))
    make_cache(store, "plain-1", shards=24, rows=4)
    return cache.open(store)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_each_shard_is_read_once_an_epoch_but_where_a_lane_ends(
    opened: LogitCache, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    read: list[int] = []
    table = opened.table
    monkeypatch.setattr(opened, "table", lambda place, disk=None: (read.append(place), table(place, disk))[1])
    order = GlobalOrder("abc", 0, opened.entries.rows, 8)
    for rank in range(world):
        stream = Stream(opened, order, rank=rank, world=world, micro_batch=1, temperature=TEMPERATURES[0])
        for _ in stream.steps(0, len(opened) // 8):
            pass
    assert set(read) == set(range(24))
    assert len(read) <= 24 + world - 1  # neighbouring ranks share a shard


def test_ranks_that_share_a_disk_get_each_shard_from_the_store_once(tmp_path: Path) -> None:
    """In two epochs of three ranks, which read the same shards at the same time."""
    make_cache(Store(str(tmp_path / "cache")), "plain-1", shards=6, rows=8)
    got: list[str] = []

    class Counted(LocalFileSystem):  # type: ignore[misc]
        cachable = False

        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **said: Any) -> bytes:
            if path.endswith(".arrow") and "shards/" in path:
                got.append(path.rpartition("/")[2])
                time.sleep(0.02)
            data: bytes = super().cat_file(path, start, end, **said)
            return data

    def rank(number: int) -> None:
        store = Store(str(tmp_path / "cache"))
        store.fs = Counted()
        own = cache.open(store)
        order = GlobalOrder("abc", 0, own.entries.rows, 6)
        stream = Stream(
            own, order, rank=number, world=3, micro_batch=2, temperature=TEMPERATURES[0],
            disk=DiskCache(tmp_path / "disk", 1 << 30),
        )  # fmt: skip
        assert len(list(stream.steps(0, 16))) == 16

    ranks = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join()
    assert sorted(got) == sorted(shard_name(shard).rpartition("/")[2] for shard in range(6))


def test_a_held_shard_is_let_go(opened: LogitCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small windows and nothing ahead, few of 24 shards are in memory at any time."""
    from distributed_kd.student import order as orders

    monkeypatch.setattr(orders, "_SHUFFLED", 1)
    monkeypatch.setattr(shard_tables, "_AHEAD_BYTES", 1)
    held = []
    take = ShardTables.take

    def counted(self: ShardTables, *given: int) -> Any:
        held.append(len(self._tables))
        return take(self, *given)

    monkeypatch.setattr(ShardTables, "take", counted)
    order = GlobalOrder("abc", 0, opened.entries.rows, 2)
    stream = Stream(opened, order, rank=0, world=1, micro_batch=2, temperature=TEMPERATURES[0])
    assert len(list(stream.steps(0, 48))) == 48
    assert max(held) <= 2 + 2  # one a lane, and one that is next; two where a shard ends in a lane's turn


def _until(done: Any) -> None:
    end = time.monotonic() + 10
    while not done():
        assert time.monotonic() < end
        time.sleep(0.001)
