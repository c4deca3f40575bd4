"""SIGTERM and SIGUSR1: how Kubernetes, spot markets and Slurm (`--signal=USR1@60`) say that time is nearly over."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distributed_kd.errors import Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_AGAIN_SECONDS = 5.0


@contextmanager
def on_stop(call: Callable[[int], None], signals: tuple[signal.Signals, ...] = STOP_SIGNALS) -> Iterator[None]:
    """`call` is told the signal's number while the block runs; never in a thread of its own, as Ray's workers have."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        call(number)

    before = [signal.signal(one, handle) for one in signals]
    try:
        yield
    finally:
        for one, was in zip(signals, before, strict=True):
            signal.signal(one, was)


class _Told(BaseException):
    """A signal, where the work was when it came. No `except Exception` on the way takes it for a failure of its own."""


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM, which preemption sends, ends the block with `Stopped`.

    Whatever is raised after it is of the stop: Ray's compiled code makes a SystemError of what a handler raises between
    a result and its return. A second one, as a scheduler may send at once, does not disturb the end; a later one does
    what the first did, which can be lost where Python throws away what is raised.
    """
    told: list[float] = []

    def stop(number: int) -> None:
        signal.alarm(0)  # of that C++ handler (see `handler_kept`), where the signal has met it
        told.append(time.monotonic())
        if len(told) == 1 or told[-1] - told[-2] > _AGAIN_SECONDS:
            raise _Told

    with on_stop(stop, (signal.SIGTERM,)):
        try:
            yield
        except BaseException:
            if told:
                raise Stopped("stopped by SIGTERM; resume with the same command") from None
            raise


def end_undisturbed() -> None:
    """From here on SIGTERM changes nothing: the work is over, its exit code stands, and the process is about to end."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def handler_kept() -> Iterator[None]:
    """A handler of SIGTERM that is there stays while the block runs, and after it, whoever sets another one.

    `ray.init` sets two: before anything else one that ends the process with 15, and from C++, past Python, one that
    aborts it three seconds after it has called ours.
    """
    kept, set_handler = signal.getsignal(signal.SIGTERM), signal.signal
    if kept is signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        yield
        return

    def set_others(number: int, handler: Any) -> Any:
        return kept if number == signal.SIGTERM else set_handler(number, handler)

    signal.signal = set_others  # type: ignore[assignment] # typed by overloads
    try:
        yield
    finally:
        signal.signal = set_handler
        signal.signal(signal.SIGTERM, kept)


def before_the_first_step() -> Stopped:
    return Stopped("stopped before the first step of this run; the same command goes on from there")


def after_the_last_step(arm: str) -> Stopped:
    return Stopped(f"stopped after the last step of the {arm}, which is done; the same command goes on from there")
