"""The global order: the same lists whatever the world, every sequence once an epoch, another order for another key."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_kd.student import order as orders
from distributed_kd.student.order import GlobalOrder

ROWS = np.array([7, 0, 12, 1, 20, 10])  # 50 sequences


def flat(order: GlobalOrder, sequences: int) -> list[int]:
    """The first so many sequences of training."""
    batches = -(-sequences // order.batch_sequences)
    return np.concatenate([order.batch(number) for number in range(batches)])[:sequences].tolist()


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_together_have_the_batch_in_order(world: int) -> None:
    order = GlobalOrder("abc", 3, ROWS, batch=8)
    for number in range(20):
        slices = [order.rank_batch(number, rank, world).tolist() for rank in range(world)]
        assert [index for one in slices for index in one] == order.batch(number).tolist()


@given(
    rows=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any),
    batch=st.integers(1, 70),
    seed=st.integers(0, 3),
    shuffled=st.integers(1, 100),
)
def test_every_sequence_comes_once_in_an_epoch_and_epochs_follow_without_a_gap(
    rows: list[int], batch: int, seed: int, shuffled: int
) -> None:
    sequences = sum(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orders, "_SHUFFLED", shuffled)
        found = flat(GlobalOrder("abc", seed, np.array(rows), batch), 3 * sequences)
    for epoch in range(3):
        assert sorted(found[epoch * sequences : (epoch + 1) * sequences]) == list(range(sequences))


def test_epochs_differ() -> None:
    found = flat(GlobalOrder("abc", 3, ROWS, batch=8), 100)
    assert found[:50] != found[50:]


def test_any_batch_can_be_had_without_those_before_it() -> None:
    whole = [GlobalOrder("abc", 3, ROWS, batch=8).batch(number).tolist() for number in range(30)]
    later = GlobalOrder("abc", 3, ROWS, batch=8)
    assert [later.batch(number).tolist() for number in (29, 7, 0)] == [whole[29], whole[7], whole[0]]


def test_seed_and_cache_each_give_another_order() -> None:
    found = [flat(GlobalOrder(*key, ROWS, batch=50), 50) for key in (("a", 0), ("a", 1), ("b", 0))]
    assert found[0] != found[1] != found[2] != found[0]


def test_the_order_is_fixed_for_good() -> None:
    """A later version must give the same batches, or a resumed run would repeat and drop data."""
    assert flat(GlobalOrder("abc", 0, np.array([4, 4, 2]), batch=2), 10) == [0, 3, 6, 2, 5, 8, 4, 9, 7, 1]


def test_the_order_of_many_windows_is_fixed_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four lanes of 12 or 13 sequences, in windows of about five, counted from where the lane begins."""
    monkeypatch.setattr(orders, "_SHUFFLED", 20)
    assert flat(GlobalOrder("abc", 0, np.full(25, 2), batch=4), 50) == [
        20, 47, 25, 40, 22, 46, 24, 8, 45, 48, 26, 15, 44, 19, 43, 41, 21, 49, 42, 9, 23, 30, 27,
        14, 7, 39, 32, 1, 6, 3, 36, 0, 16, 31, 37, 4, 17, 38, 33, 5, 29, 2, 12, 34, 18, 10, 13, 35,
        28, 11,
    ]  # fmt: skip


def test_shards_are_first_used_in_this_order_and_those_without_rows_never() -> None:
    order = GlobalOrder("abc", 3, ROWS, batch=8)
    shard_of = np.repeat(np.arange(len(ROWS)), ROWS)
    seen = list(dict.fromkeys(shard_of[flat(order, 50)].tolist()))
    assert order.first_uses().tolist() == [*seen, 1]


@pytest.mark.parametrize(("batch", "lanes"), [(1, 1), (6, 6), (32, 32), (64, 32), (37, 1), (48, 24), (1000, 25)])
def test_there_are_as_many_lanes_as_divide_a_batch_and_a_store_bears(batch: int, lanes: int) -> None:
    assert GlobalOrder("abc", 0, ROWS, batch).lanes == lanes


def test_a_rank_reads_its_part_of_the_shards_and_each_of_them_for_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 320 shards of 16: an epoch's first use of each to its last is about a window, and ranks share next to none."""
    monkeypatch.setattr(orders, "_SHUFFLED", 512)
    shards, rows, batch, world = 320, 16, 64, 8
    order = GlobalOrder("abc", 0, np.full(shards, rows), batch)
    steps = shards * rows // batch
    by_rank = [[order.rank_batch(step, rank, world) // rows for step in range(steps)] for rank in range(world)]
    read = [len(np.unique(steps_of)) for steps_of in by_rank]
    assert sum(read) <= shards + order.lanes  # a lane's two ends may lie in shards that are shared
    window = orders._SHUFFLED // order.lanes + 2 * rows  # sequences of a lane
    assert window < order.sequences // order.lanes / 3
    for steps_of in by_rank:
        for shard in np.unique(steps_of):
            used = [step for step, own in enumerate(steps_of) if shard in own]
            assert used[-1] - used[0] <= window / (batch / order.lanes)


def test_a_batch_is_of_many_places_and_stays_so() -> None:
    shards, rows, batch = 1000, 16, 64
    order = GlobalOrder("abc", 0, np.full(shards, rows), batch)
    for number in range(shards * rows // batch):
        assert len(np.unique(order.batch(number) // rows)) >= order.lanes


def test_an_epoch_is_as_random_as_chance_in_rank_and_in_which_sequence_follows_which() -> None:
    found = np.array(flat(GlobalOrder("abc", 0, np.full(400, 16), batch=64), 6400))
    correlation = np.corrcoef(np.argsort(found), np.arange(6400))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(6400)
    assert np.mean(np.diff(found) == 1) < 0.01


@given(first=st.integers(0, 40), count=st.integers(0, 40), batch=st.integers(1, 130))
def test_spans_are_the_steps_in_order_and_end_with_epochs(first: int, count: int, batch: int) -> None:
    spans = GlobalOrder("abc", 0, ROWS, batch).spans(range(first, first + count))
    assert [step for span in spans for step in span] == list(range(first, first + count))
    for span in spans:
        assert {step * batch // 50 for step in span} == {span.start * batch // 50}
    assert len({span.start * batch // 50 for span in spans}) == len(spans)
