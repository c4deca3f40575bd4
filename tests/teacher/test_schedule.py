"""The driver's decisions, as a machine without Ray and without a clock."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from distributed_kd.teacher.schedule import MOST_LOSSES, Schedule


@given(st.integers(0, 30), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**31))
def test_every_shard_is_finished_once_whatever_is_lost(shards: int, replicas: int, room: int, seed: int) -> None:
    """Losses and errors at random, fewer for a shard than would set it aside."""
    drawn = random.Random(seed)
    schedule = Schedule(range(shards))
    trouble = {shard: drawn.choice([0, 0, 1, 2]) for shard in range(shards)}
    finished: list[int] = []
    names = [f"r{number}" for number in range(replicas)]
    while not schedule.is_done:
        for replica in names:
            for _ in range(room - len(schedule.in_work.get(replica, []))):
                schedule.give(replica)
        in_work = [shard for held in schedule.in_work.values() for shard in held]
        assert len(set(in_work)) == len(in_work), "a shard is in work twice"
        assert max(map(len, schedule.in_work.values())) <= room
        replica = drawn.choice(sorted(schedule.in_work))
        shard = drawn.choice(schedule.in_work[replica])
        if not trouble[shard]:
            finished.append(shard)
            schedule.finish(replica, shard)
        elif drawn.random() < 0.5:
            trouble[shard] -= 1
            schedule.fail(replica, shard, "error")
        else:
            held = list(schedule.in_work[replica])
            for lost in held:
                trouble[lost] = max(0, trouble[lost] - 1)
            assert schedule.lose(replica, "gone") == held
            names[names.index(replica)] = f"{replica}'"  # one that takes its place
    assert sorted(finished) == list(range(shards))
    assert not schedule.set_aside


def test_a_shard_that_fails_three_times_is_set_aside_and_the_others_go_first() -> None:
    schedule = Schedule([0, 1, 2])
    order = []
    while not schedule.is_done:
        shard = schedule.give("r")
        assert shard is not None
        order.append(shard)
        if shard == 0:
            schedule.fail("r", shard, f"error {order.count(0)}")
        else:
            schedule.finish("r", shard)
    assert order == [0, 1, 2, 0, 0]
    assert schedule.set_aside == {0: "error 3"}
    assert schedule.failures == 3


def test_a_lost_replicas_shard_is_done_next_and_one_that_ends_replicas_is_set_aside() -> None:
    schedule = Schedule([5, 6])
    for number in range(MOST_LOSSES):
        assert schedule.give(f"r{number}") == 5
        assert schedule.lose(f"r{number}", "out of memory") == [5]
    assert schedule.set_aside.keys() == {5}
    assert "out of memory" in schedule.set_aside[5]
    assert schedule.give("r9") == 6
    assert schedule.lose("r8", "an idle one") == []
    assert schedule.in_work == {"r9": [6]}


def test_a_shard_that_ends_replicas_does_not_take_the_one_beside_it_along() -> None:
    """One replica after the other, two shards in each: after the first loss both are done alone."""
    schedule = Schedule(range(4))
    finished = []
    for number in range(20):
        replica = f"r{number}"
        while not schedule.is_done:
            for _ in range(2 - len(schedule.in_work.get(replica, []))):
                schedule.give(replica)
            held = schedule.in_work[replica]
            if 1 in held:
                schedule.lose(replica, "out of memory")
                break
            finished.append(held[0])
            schedule.finish(replica, held[0])
    assert schedule.set_aside.keys() == {1}
    assert sorted(finished) == [0, 2, 3]


def test_losses_one_after_the_other_are_hopeless_and_a_receipt_is_hope() -> None:
    schedule = Schedule(range(100))
    for number in range(2 * MOST_LOSSES - 1):
        schedule.lose(f"r{number}", "gone")
    assert not schedule.is_hopeless(replicas=2)
    shard = schedule.give("r")
    assert shard is not None
    schedule.finish("r", shard)
    for number in range(2 * MOST_LOSSES):
        assert not schedule.is_hopeless(replicas=2)
        schedule.lose(f"s{number}", "gone")
    assert schedule.is_hopeless(replicas=2)


def test_replicas_that_wait_for_the_last_shard_may_be_lost_without_hope_being_lost() -> None:
    schedule = Schedule(range(40))
    for number in range(39):
        shard = schedule.give(f"r{number}")
        assert shard is not None
        schedule.finish(f"r{number}", shard)
    schedule.give("last")
    for number in range(39):
        schedule.lose(f"r{number}", "preempted")
        assert not schedule.is_hopeless(replicas=1)
