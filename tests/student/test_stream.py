"""What ranks are given to train on: one order of sequences, however a batch is shared out and whenever it is begun.

A rank's share of a batch is one slice of the order; which of its rows share a micro-batch goes by their length."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from distributed_kd import cache
from distributed_kd.cache.reader import LogitCache
from distributed_kd.store.filesystem import Store
from distributed_kd.student import shard_tables
from distributed_kd.student import stream as streams
from distributed_kd.student.order import GlobalOrder
from distributed_kd.student.stream import MicroBatch, Stream
from tests.cache.caches import TEMPERATURES, make_cache

BATCH = 8
SEQUENCES = 20  # epochs end inside a batch: 20 is no multiple of 8
STEPS = 9


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> LogitCache:
    store = Store(str(tmp_path_factory.mktemp("cache")))
    make_cache(store, "plain-1", shards=5, rows=4)
    return cache.open(store)


def rank_stream(opened: LogitCache, rank: int = 0, world: int = 1, micro_batch: int = 2, **said: Any) -> Stream:
    """As a rank's worker makes it."""
    order = GlobalOrder(opened.manifest.fingerprint, 3, opened.entries.rows, BATCH)
    return Stream(opened, order, rank=rank, world=world, micro_batch=micro_batch, temperature=TEMPERATURES[0], **said)


def ids_of(micro_batches: list[MicroBatch]) -> list[int]:
    return [sequence for batch in micro_batches for sequence in batch.sequence_ids]


def in_order(opened: LogitCache, step: int, ranks: list[list[MicroBatch]]) -> list[int]:
    """The sequence ids that the ranks were given, one rank after the other, each put back where it was before a share
    of several micro-batches was sorted by length.
    """
    order = GlobalOrder(opened.manifest.fingerprint, 3, opened.entries.rows, BATCH)
    found = []
    for rank, batches in enumerate(ranks):
        lengths = [len(opened[one].sequence.input_ids) for one in order.rank_batch(step, rank, len(ranks)).tolist()]
        sort = range(len(lengths)) if len(batches) == 1 else sorted(range(len(lengths)), key=lengths.__getitem__)
        given = dict(zip(sort, ids_of(batches), strict=True))
        found += [given[place] for place in range(len(lengths))]
    return found


def trained(opened: LogitCache, world: int, micro_batch: int, first: int = 0, end: int = STEPS) -> list[list[int]]:
    """Of each step, the sequence ids of the global batch: the ranks' shares one after the other."""
    ranks = [rank_stream(opened, rank, world, micro_batch).steps(first, end) for rank in range(world)]
    return [in_order(opened, first + at, list(step)) for at, step in enumerate(zip(*ranks, strict=True))]


@pytest.fixture(scope="module")
def whole(opened: LogitCache) -> list[list[int]]:
    """The batches of one rank that takes each as a whole."""
    return trained(opened, 1, BATCH)


def test_batches_are_those_of_the_order_and_hold_the_sequences_that_they_name(
    opened: LogitCache, whole: list[list[int]]
) -> None:
    order = GlobalOrder(opened.manifest.fingerprint, 3, opened.entries.rows, BATCH)
    assert whole == [order.batch(step).tolist() for step in range(STEPS)]
    for batches in rank_stream(opened, micro_batch=3).steps(0, STEPS):
        for batch in batches:
            for row, number in enumerate(batch.sequence_ids):
                ids = opened[number].sequence.input_ids.tolist()
                assert batch.input_ids[row, : len(ids)].tolist() == ids


@pytest.mark.parametrize(
    ("world", "micro_batch"), [(w, m) for w in (1, 2, 4, 8) for m in (1, 2, 3, 4, 8) if m <= BATCH // w]
)
def test_batches_are_the_same_lists_for_every_world_and_micro_batch(
    opened: LogitCache, whole: list[list[int]], world: int, micro_batch: int
) -> None:
    assert trained(opened, world, micro_batch) == whole


@pytest.mark.parametrize("ahead", [1, 2, 5, 100])
@pytest.mark.parametrize("slow", ["reader", "trainer"])
def test_batches_are_the_same_lists_however_far_is_read_ahead(
    opened: LogitCache, whole: list[list[int]], monkeypatch: pytest.MonkeyPatch, ahead: int, slow: str
) -> None:
    monkeypatch.setattr(streams, "_AHEAD", ahead)
    found = []
    stream = rank_stream(opened)
    if slow == "reader":
        made = stream._micro_batches
        monkeypatch.setattr(stream, "_micro_batches", lambda *given: (time.sleep(0.01), made(*given))[1])
    for step, batches in enumerate(stream.steps(0, STEPS)):
        found.append(in_order(opened, step, [batches]))
        time.sleep(0.01 if slow == "trainer" else 0.0)
    assert found == whole


@pytest.mark.parametrize("threads", [1, 2, 32])
def test_batches_are_the_same_lists_for_any_number_of_readers(
    opened: LogitCache, whole: list[list[int]], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(shard_tables, "_THREADS", threads)
    for world in (1, 2, 4, 8):
        assert trained(opened, world, max(1, 4 // world)) == whole


@pytest.mark.parametrize("first", range(STEPS + 1))
def test_a_run_that_goes_on_from_a_step_gets_the_lists_that_were_left(
    opened: LogitCache, whole: list[list[int]], first: int
) -> None:
    assert trained(opened, 2, 2, first) == whole[first:]


def test_a_run_that_goes_on_in_other_worlds_gets_the_lists_of_one_that_did_not(
    opened: LogitCache, whole: list[list[int]]
) -> None:
    """Stopped in the middle of an epoch and of reading ahead, three times."""
    found = []
    for world, micro_batch, end in ((4, 1, 2), (1, 8, 3), (8, 1, 7), (2, 3, STEPS)):
        first = len(found)
        ranks: list[Iterator[list[MicroBatch]]] = [
            rank_stream(opened, rank, world, micro_batch).steps(first, STEPS) for rank in range(world)
        ]
        for _ in range(first, end):
            found.append(in_order(opened, len(found), [next(rank) for rank in ranks]))
        for rank in ranks:
            rank.close()  # type: ignore[attr-defined]
    assert found == whole


def test_who_is_asked_to_stop_waits_no_longer_for_a_store_that_does_not_answer(
    opened: LogitCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_CLOSE_SECONDS", 0.1)
    answers, asked = threading.Event(), threading.Event()
    stream = rank_stream(opened)
    fetch = stream._fetch
    monkeypatch.setattr(stream, "_fetch", lambda place: (answers.wait(), fetch(place))[1])
    batches = stream.steps(0, STEPS, asked.is_set)
    threading.Timer(0.2, asked.set).start()
    begun = time.monotonic()
    assert next(batches, None) is None
    batches.close()
    assert time.monotonic() - begun < 10.0
    answers.set()
    batches._thread.join()


def test_micro_batches_are_of_rows_of_like_length(opened: LogitCache, whole: list[list[int]]) -> None:
    """So that less is padded: no row is longer than one of a later micro-batch, and equal ones stay in their order."""
    length = {row.sequence.sequence_id: len(row.sequence.input_ids) for row in opened}
    for step, batches in enumerate(rank_stream(opened).steps(0, STEPS)):
        assert ids_of(batches) == sorted(whole[step], key=length.__getitem__)
        assert [batch.input_ids.shape[1] for batch in batches] == [
            max(map(length.get, batch.sequence_ids)) for batch in batches
        ]
    assert any(step != sorted(step, key=length.__getitem__) for step in whole)


def test_epochs_follow_without_a_gap_where_they_end_inside_a_batch(whole: list[list[int]]) -> None:
    flat = [one for batch in whole for one in batch]
    epochs = [flat[begin : begin + SEQUENCES] for begin in range(0, SEQUENCES * (len(flat) // SEQUENCES), SEQUENCES)]
    assert len(epochs) == 3
    assert all(sorted(epoch) == list(range(SEQUENCES)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
