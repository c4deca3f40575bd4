"""Which replica works on which shard: the driver's decisions, without Ray and without a clock.

A shard is waiting, in work by one replica, finished, or set aside. An error sends it to the end of the queue, and the
third one sets it aside: an error that comes back is the shard's, one that does not was the machine's. A replica that is
lost gives its shard back, to be done first; a shard that takes many replicas with it is set aside as well, since what
ends them is likely to be its own size.

The state is a few numbers for each shard that waits and each replica that works.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

MOST_ERRORS = 3
MOST_LOSSES = 6


class Schedule:
    def __init__(self, shards: Iterable[int]) -> None:
        self._waiting = deque(shards)
        self._errors: dict[int, int] = {}
        self._losses: dict[int, int] = {}
        self.in_work: dict[str, int] = {}  # by replica
        self.set_aside: dict[int, str] = {}  # by shard: why
        self.failures = 0  # errors and losses
        self.lost_in_a_row = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_done(self) -> bool:
        """Whether every shard is finished or set aside."""
        return not self._waiting and not self.in_work

    def give(self, replica: str) -> int | None:
        """The shard that an idle replica is to do; None where none waits."""
        assert replica not in self.in_work
        if not self._waiting:
            return None
        shard = self._waiting.popleft()
        self.in_work[replica] = shard
        return shard

    def finish(self, replica: str) -> int:
        shard = self.in_work.pop(replica)
        self._errors.pop(shard, None)
        self._losses.pop(shard, None)
        self.lost_in_a_row = 0
        return shard

    def fail(self, replica: str, reason: str) -> int:
        """The replica's shard gave an error, and the replica is idle again; returns the shard."""
        shard = self.in_work.pop(replica)
        self.failures += 1
        self._errors[shard] = self._errors.get(shard, 0) + 1
        if self._errors[shard] >= MOST_ERRORS:
            self.set_aside[shard] = reason
        else:
            self._waiting.append(shard)
        return shard

    def lose(self, replica: str, reason: str) -> int | None:
        """The replica is gone; returns the shard that it had in work, if any."""
        shard = self.in_work.pop(replica, None)
        self.failures += 1
        self.lost_in_a_row += 1
        if shard is None:
            return None
        self._losses[shard] = self._losses.get(shard, 0) + 1
        if self._losses[shard] >= MOST_LOSSES:
            self.set_aside[shard] = f"{MOST_LOSSES} replicas were lost with it, the last one: {reason}"
        else:
            self._waiting.appendleft(shard)
        return shard

    def is_hopeless(self, replicas: int) -> bool:
        """Whether so many losses came one after the other that it is not the machines: as a teacher beyond memory."""
        return self.lost_in_a_row >= MOST_LOSSES * max(1, replicas)
