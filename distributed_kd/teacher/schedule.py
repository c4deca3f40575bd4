"""Which replica works on which shard: the driver's decisions, without Ray and without a clock.

A shard is waiting, in work in one replica, finished, or set aside. An error sends it to the end of the queue, and the
third one sets it aside: an error that comes back is the shard's, one that does not was the machine's. A replica that is
lost gives its shards back, to be done first and each alone in its replica, since one of them may be what ended it; a
shard that takes many replicas with it is set aside as well: what ends them is likely to be its own size.

The state is a few numbers for each shard that waits and each replica that works.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

MOST_ERRORS = 3
MOST_LOSSES = 6


class Schedule:
    def __init__(self, shards: Iterable[int]) -> None:
        self._untouched = np.fromiter(shards, np.int64)  # 8 bytes a shard, where a Python int takes 40
        self._next = 0  # of those
        self._failed: deque[int] = deque()
        self._suspects: deque[int] = deque()  # given back by replicas that were lost
        self._errors: dict[int, int] = {}
        self._losses: dict[int, int] = {}
        self.in_work: dict[str, list[int]] = {}  # by replica
        self.set_aside: dict[int, str] = {}  # by shard: why
        self._proven: set[str] = set()  # replicas that have finished a shard
        self.failures = 0  # errors and losses
        self.lost_in_a_row = 0

    @property
    def waiting(self) -> int:
        return self._waiting + len(self._suspects)

    @property
    def is_done(self) -> bool:
        """Whether every shard is finished or set aside."""
        return not self.waiting and not self.in_work

    def give(self, replica: str) -> int | None:
        """Another shard for a replica that has room for one; None where none waits that may be done beside its others.

        An idle replica is given one whenever one waits.
        """
        held = self.in_work.get(replica, [])
        if self._suspects and not held:
            shard = self._suspects.popleft()
        elif self._waiting and not any(shard in self._losses for shard in held):
            shard = self._take_next()
        else:
            return None
        self.in_work.setdefault(replica, []).append(shard)
        return shard

    def finish(self, replica: str, shard: int) -> None:
        self._take(replica, shard)
        self._errors.pop(shard, None)
        self._losses.pop(shard, None)
        self._proven.add(replica)
        self.lost_in_a_row = 0

    def fail(self, replica: str, shard: int, reason: str) -> None:
        """The shard gave an error, and the replica has room for another."""
        self._take(replica, shard)
        self.failures += 1
        self._errors[shard] = self._errors.get(shard, 0) + 1
        if self._errors[shard] >= MOST_ERRORS:
            self.set_aside[shard] = reason
        elif shard in self._losses:
            self._suspects.append(shard)
        else:
            self._failed.append(shard)

    def lose(self, replica: str, reason: str) -> list[int]:
        """The replica is gone; returns the shards that it had in work."""
        shards = self.in_work.pop(replica, [])
        self.failures += 1
        if shards or replica not in self._proven:  # one that has worked and waits says nothing of the work
            self.lost_in_a_row += 1
        self._proven.discard(replica)
        for shard in shards:
            self._losses[shard] = self._losses.get(shard, 0) + 1
            if self._losses[shard] >= MOST_LOSSES:
                self.set_aside[shard] = f"{MOST_LOSSES} replicas were lost with it, the last one: {reason}"
            else:
                self._suspects.append(shard)
        return shards

    def is_hopeless(self, replicas: int) -> bool:
        """Whether so many losses came one after the other that it is not the machines: as a teacher beyond memory."""
        return self.lost_in_a_row >= MOST_LOSSES * max(1, replicas)

    @property
    def _waiting(self) -> int:
        """Those that no lost replica gave back."""
        return len(self._untouched) - self._next + len(self._failed)

    def _take_next(self) -> int:
        if self._next == len(self._untouched):
            return self._failed.popleft()
        self._next += 1
        return int(self._untouched[self._next - 1])

    def _take(self, replica: str, shard: int) -> None:
        self.in_work[replica].remove(shard)
        if not self.in_work[replica]:
            del self.in_work[replica]
