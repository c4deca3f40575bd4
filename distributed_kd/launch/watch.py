"""Ranks that look after one another: one that falls silent is named, and all end, whatever collective they wait in.

A collective whose peer is gone waits for its timeout, and then says the address of a connection at best; NCCL ends the
process from a thread of its own. So every rank has a thread that writes a beat into torch's store (at MASTER_ADDR,
which the first host serves) and looks whether the next rank's beat goes on: a few small requests a rank and period,
whatever the number of ranks. What ends a rank is written there as the verdict, which all others find with their
next beat; so is that one was asked to stop, since the others may wait for a shard and meet it nowhere. A request over a
link that is cut has no end, so a second thread notices where the store itself is silent.

A rank counts as silent after 0.6 of the timeout, so that all have ended when it is over. A rank that beats and does
not come to a collective is found when the others' collective has timed out: each beat says where its thread is.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, NoReturn

_SHARE = 0.6
# Files whose functions wait for other ranks, or for what they have begun on a GPU.
_WAITING = ("torch/distributed", "torch/autograd", "deepspeed/", "launch/watch.py")
_NAMED = 8
_AGAIN = "the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class Verdict:
    """Why all ranks end. `kind`: refused (one of our own errors), failed (any other), silent (ranks that are lost)."""

    kind: str
    message: str
    exit_code: int = 1


class Watch:
    """Of this rank, over the others, from its making to `close`. Made by the thread that trains.

    on_end: called once, before this process ends for a verdict that another rank or a thread of this one has found.
    asked_to_stop: is set here, and soon on all ranks, where anybody sets it on one.
    """

    def __init__(self, rank: int, world: int, timeout: timedelta, on_end: Callable[[Verdict], None]) -> None:
        from torch._C._distributed_c10d import PrefixStore, TCPStore

        self.rank, self.world = rank, world
        self.limit = _SHARE * timeout.total_seconds()
        self.period = max(0.2, min(2.0, timeout.total_seconds() / 20))
        self._on_end = on_end
        self._first = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        self._thread_watched = threading.get_ident()
        # A connection of its own: torch's waits in it for whole collectives. torchrun may try again on the same store.
        connection = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
            timeout=timeout,
        )  # fmt: skip
        self._store = PrefixStore(f"dkd/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", connection)
        self._lock = threading.Lock()  # the thread that trains asks the store as well
        self._ending, self._telling = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self.asked_to_stop = threading.Event()
        self._answered = time.monotonic()
        self._broken = False
        self._store.set(f"host/{rank}", socket.gethostname())
        self._beat(0)
        self._threads = [
            threading.Thread(target=target, name=f"dkd-{target.__name__.strip('_')}", daemon=True)
            for target in (self._keep_beating, self._keep_listening)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(self.period)

    def tell(self, key: str, value: str) -> None:
        with self._lock:
            self._store.set(f"told/{key}", value)

    def ask(self, key: str) -> str:
        """What another rank tells under this key, waited for as long as that rank beats."""
        told = self.hear(key, math.inf)
        assert told is not None
        return told

    def hear(self, key: str, seconds: float) -> str | None:
        """The same, or None where it has not been told in so many seconds."""
        until = time.monotonic() + seconds
        while True:
            with self._lock:
                if self._store.check([f"told/{key}"]):
                    return str(self._store.get(f"told/{key}").decode())
            if time.monotonic() > until:
                return None
            time.sleep(min(0.2, self.period))

    def meet(self, name: str) -> None:
        """Returns once all ranks are here, however long some take; rank 0, whose host has the store, comes last."""
        with self._lock:
            came = self._store.add(f"met/{name}", 1)
        if came == self.world:
            self.tell(f"met/{name}", "all")
        self.ask(f"met/{name}")
        with self._lock:
            self._store.add(f"left/{name}", 1)
        # Not for ever: one that dies here has nothing left to do.
        until = time.monotonic() + 4 * self.period
        while self.rank == 0 and time.monotonic() < until and self._left(name) < self.world:
            time.sleep(min(0.05, self.period))

    def why(self, error: BaseException) -> Verdict:
        """The verdict on an error of this rank that need not be its own fault: a collective fails where a peer does."""
        try:
            return self._why(error)
        except RuntimeError:  # torch's for a store whose host is gone
            return self._first_is_gone()

    def _why(self, error: BaseException) -> Verdict:
        where = f"rank {self.rank} on {socket.gethostname()}"
        own = Verdict("failed", f"{where} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if not isinstance(error, RuntimeError) or self.world == 1:
            return own
        before = self._beats()
        time.sleep(3 * self.period)  # a rank that has died is silent in this time, one that told why has told it
        verdict = self._verdict()
        if verdict is not None:
            return verdict
        after = self._beats()
        silent = [rank for rank in range(self.world) if before[rank][0] == after[rank][0] and rank != self.rank]
        if silent:
            return Verdict("silent", f"{self._names(silent)} ended without a word or hung; {_AGAIN}")
        absent = [rank for rank in range(self.world) if after[rank][1] and after[rank][1] == before[rank][1]]
        if absent and "imed out" in str(error):
            return Verdict(
                "silent",
                f"{self._names(absent)} did not come to a collective in time, busy at {after[absent[0]][1]}; {_AGAIN}",
            )
        return own

    def end_process(self, verdict: Verdict, *, mine: bool = True, heard: bool = True) -> NoReturn:
        """Tells all ranks, unless the store is gone and none has `heard` it, and ends this process.

        Any thread of this rank calls it. What is not `mine`, another rank has said already.
        """
        if heard:
            if not self._ending.acquire(blocking=False):
                while True:  # another thread is about to end the process
                    time.sleep(self.period)
            with self._lock, suppress(RuntimeError):
                settled = self._store.compare_set("verdict", "", json.dumps(asdict(verdict)))
                mine = mine and json.loads(settled) == asdict(verdict)
                verdict = Verdict(**json.loads(settled))
        if (mine or verdict.kind == "silent") and self._telling.acquire(blocking=False):
            telling = threading.Thread(target=self._on_end, args=(verdict,), daemon=True)
            telling.start()
            telling.join(5 * self.period)  # a shared disk behind the link that is cut would keep it for ever
        if heard:
            time.sleep(2 * self.period)  # for the others to hear it: the store may end with this process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(verdict.exit_code)

    def _left(self, name: str) -> int:
        with self._lock:
            return int(self._store.add(f"left/{name}", 0))

    def _keep_beating(self) -> None:
        followed, heard, since = (self.rank + 1) % self.world, "", time.monotonic()
        number = 0
        try:
            while not self._closed.wait(self.period):
                number += 1
                self._beat(number)
                verdict = self._verdict()
                if verdict is not None:
                    self.end_process(verdict, mine=False)
                self._share_stop()
                beat = self._beats([followed])[followed][0]
                self._answered = time.monotonic()
                if beat != heard:
                    heard, since = beat, self._answered
                elif self._answered - since > self.limit and self.world > 1:
                    self.end_process(self._silence(self._answered - since))
        except RuntimeError:  # torch's for a connection that is closed: the other thread says so
            self._broken = True

    def _keep_listening(self) -> None:
        while not self._closed.wait(self.period):
            silent = time.monotonic() - self._answered
            if self._broken and self._closed.wait(2 * self.period):
                return  # the first host has finished before this one: no harm
            if self._broken:
                self.end_process(self._first_is_gone(), heard=False)
            elif silent > self.limit:
                line = f"rank 0 at {self._first} not heard of for {silent:.0f} s: a lost link, or a dead host"
                self.end_process(Verdict("silent", f"{line}; {_AGAIN}"), heard=False)

    def _beat(self, number: int) -> None:
        with self._lock:
            self._store.set(f"beat/{self.rank}", json.dumps([str(number), self._busy_at()]))

    def _share_stop(self) -> None:
        with self._lock:
            if self.asked_to_stop.is_set():
                self._store.set("stop", "asked")
            elif self._store.check(["stop"]):
                self.asked_to_stop.set()

    def _beats(self, ranks: list[int] | None = None) -> dict[int, list[str]]:
        """rank -> (number of the last beat, what it is busy with, empty where it waits for others)."""
        wanted = list(range(self.world)) if ranks is None else ranks
        with self._lock:
            there = wanted
            if not self._store.check([f"beat/{rank}" for rank in wanted]):  # some have not begun
                there = [rank for rank in wanted if self._store.check([f"beat/{rank}"])]
            beats = self._store.multi_get([f"beat/{rank}" for rank in there]) if there else []
        return {rank: ["", ""] for rank in wanted} | dict(zip(there, map(json.loads, beats), strict=True))

    def _busy_at(self) -> str:
        frame: Any = sys._current_frames().get(self._thread_watched)
        own = ""
        while frame is not None:
            file = frame.f_code.co_filename
            if any(part in file for part in _WAITING):
                return ""
            if not own and "distributed_kd/" in file:
                own = f"{file.rpartition('distributed_kd/')[2]}:{frame.f_lineno}"
            frame = frame.f_back
        return own

    def _verdict(self) -> Verdict | None:
        with self._lock:
            if not self._store.check(["verdict"]):
                return None
            return Verdict(**json.loads(self._store.get("verdict")))

    def _first_is_gone(self) -> Verdict:
        return Verdict("silent", f"rank 0 at {self._first} ended without a word; {_AGAIN}")

    def _silence(self, seconds: float) -> Verdict:
        before = self._beats()
        time.sleep(2 * self.period)
        after = self._beats()
        silent = [rank for rank in range(self.world) if before[rank][0] == after[rank][0] and rank != self.rank]
        silent = silent or [(self.rank + 1) % self.world]
        names = self._names(silent)
        return Verdict("silent", f"{names} not heard of for {seconds:.0f} s: a lost link, or a dead host; {_AGAIN}")

    def _names(self, ranks: list[int]) -> str:
        """Like `rank 1 on HOST`, of the first few."""
        with self._lock:
            hosts = [self._store.get(f"host/{rank}").decode() for rank in ranks[:_NAMED]]
        named = ", ".join(f"rank {rank} on {host}" for rank, host in zip(ranks, hosts, strict=False))
        return named + (f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else "")
