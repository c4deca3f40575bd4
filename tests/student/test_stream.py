"""What ranks are given, as ordered lists: the same for any number of them, any micro-batch, and after a stop."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from distributed_kd import cache as caches
from distributed_kd.cache.reader import LogitCache
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import Store
from distributed_kd.student.order import GlobalOrder
from distributed_kd.student.stream import MicroBatch, Stream
from tests.cache.caches import make_cache

SEQUENCES, BATCH, STEPS = 20, 8, 7  # nearly three epochs, whose ends lie inside of batches


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> LogitCache:
    folder = str(tmp_path_factory.mktemp("cache"))
    make_cache(Store(folder), "plain-1", shards=5, rows=4)
    return caches.open(folder)


def given(cache: LogitCache, world: int, micro_batch: int, first: int = 0, end: int = STEPS) -> list[list[int]]:
    """The sequence ids of each step, rank after rank."""
    order = GlobalOrder(cache.manifest.fingerprint, 3, len(cache), BATCH)
    ranks = []
    for rank in range(world):
        stream = Stream(cache, order, rank=rank, world=world, micro_batch=micro_batch, temperature=1.0)
        steps: list[list[MicroBatch]] = list(stream.steps(first, end))
        assert all(len(batch.sequence_ids) == micro_batch for step in steps for batch in step)
        ranks.append([[number for batch in step for number in batch.sequence_ids] for step in steps])
    return [[number for own in ranks for number in own[step]] for step in range(end - first)]


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 1), (1, 8), (2, 1), (2, 4), (4, 2), (8, 1)])
def test_a_batch_is_the_same_list_for_any_ranks_and_micro_batches(
    cache: LogitCache, world: int, micro_batch: int
) -> None:
    order = GlobalOrder(cache.manifest.fingerprint, 3, len(cache), BATCH)
    ids = [cache[place].sequence.sequence_id for place in range(len(cache))]
    expected = [[ids[place] for place in order.batch(step)] for step in range(STEPS)]
    assert given(cache, world, micro_batch) == expected
    assert set(Counter(number for step in expected for number in step).values()) == {2, 3}


def test_a_run_that_stops_and_goes_on_with_other_ranks_sees_each_batch_once(cache: LogitCache) -> None:
    whole = given(cache, world=1, micro_batch=8)
    assert given(cache, 4, 2, 0, 3) + given(cache, 2, 1, 3, 5) + given(cache, 8, 1, 5, STEPS) == whole


def test_a_micro_batch_holds_its_rows_with_their_own_targets_and_shards(cache: LogitCache) -> None:
    order = GlobalOrder(cache.manifest.fingerprint, 3, len(cache), BATCH)
    stream = Stream(cache, order, rank=1, world=2, micro_batch=4, temperature=2.0)
    for step, (batch,) in enumerate(stream.steps(0, STEPS)):
        places = [int(place) for place in order.rank_batch(step, 1, 2)]
        assert batch.shards == tuple(place // 4 for place in places)
        begin = 0
        for at, place in enumerate(places):
            row = cache[place]
            length, end = len(row.sequence.input_ids), begin + len(row.targets)
            assert batch.input_ids[at, :length].tolist() == row.sequence.input_ids.tolist()
            log_p, log_p_tail = row.targets.log_probabilities(2.0)
            assert batch.targets.ids[begin:end].tolist() == row.targets.ids.tolist()
            assert torch.equal(batch.targets.log_p[begin:end], torch.from_numpy(log_p))
            assert torch.equal(batch.targets.log_p_tail[begin:end], torch.from_numpy(log_p_tail))
            begin = end
        assert begin == len(batch.targets)


def test_a_damaged_shard_stops_the_step_that_needs_it_by_name(tmp_path: Path) -> None:
    make_cache(Store(str(tmp_path)), "plain-1", shards=5, rows=4)
    damaged = tmp_path / "shards" / "00000002.arrow"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    cache = caches.open(str(tmp_path))
    order = GlobalOrder(cache.manifest.fingerprint, 3, len(cache), 2)
    needs = next(step for step in range(10) if any(place // 4 == 2 for place in order.batch(step)))
    assert needs > 0
    stream = Stream(cache, order, rank=0, world=1, micro_batch=2, temperature=1.0)
    steps = stream.steps(0, 10)
    for _ in range(needs):
        next(steps)
    with pytest.raises(RequestError, match=r"00000002\.arrow"):
        next(steps)
