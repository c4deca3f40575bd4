"""The global order: the same lists whatever the world, every sequence once an epoch, another order for another key."""

from __future__ import annotations

import numpy as np
import pytest

from distributed_kd.student.order import GlobalOrder


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_together_have_the_batch_in_order(world: int) -> None:
    order = GlobalOrder("abc", seed=3, sequences=50, batch=8)
    for number in range(20):
        slices = [order.rank_batch(number, rank, world).tolist() for rank in range(world)]
        assert [index for one in slices for index in one] == order.batch(number).tolist()


def test_every_sequence_comes_once_in_an_epoch_and_epochs_follow_without_a_gap() -> None:
    order = GlobalOrder("abc", seed=3, sequences=50, batch=8)
    flat = np.concatenate([order.batch(number) for number in range(25)])
    epochs = flat.reshape(4, 50)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(50))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_any_batch_can_be_had_without_those_before_it() -> None:
    first = GlobalOrder("abc", seed=3, sequences=50, batch=8)
    whole = [first.batch(number).tolist() for number in range(30)]
    later = GlobalOrder("abc", seed=3, sequences=50, batch=8)
    assert [later.batch(number).tolist() for number in (29, 7, 0)] == [whole[29], whole[7], whole[0]]


def test_seed_and_cache_each_give_another_order() -> None:
    orders = [GlobalOrder(*key, sequences=50, batch=50).batch(0).tolist() for key in (("a", 0), ("a", 1), ("b", 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_the_order_is_fixed_for_good() -> None:
    """A later version must give the same batches, or a resumed run would repeat and drop data."""
    assert GlobalOrder("abc", seed=0, sequences=10, batch=10).batch(0).tolist() == [4, 5, 9, 6, 7, 1, 2, 3, 8, 0]


def test_the_size_of_a_batch_does_not_enter_the_order() -> None:
    flat = [
        [index for number in range(120 // batch) for index in GlobalOrder("abc", 3, 50, batch).batch(number).tolist()]
        for batch in (1, 8, 24, 60, 120)
    ]
    assert all(one == flat[0] for one in flat)
