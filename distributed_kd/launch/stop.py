"""SIGTERM and SIGUSR1: how Kubernetes, spot markets and Slurm (`--signal=USR1@60`) say that time is nearly over."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


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


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Whether this process was asked to stop since the block began."""
    asked = threading.Event()
    with on_stop(lambda _: asked.set()):
        yield asked.is_set
