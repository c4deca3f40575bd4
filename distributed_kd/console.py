"""What a person sees while work goes on: progress with time left, plain lines without a terminal, nothing if quiet.

Everything goes to standard error, so that standard output carries results alone: libraries that print there too
are sent to standard error by `claim_stdout`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol, TextIO

QUIET_VARIABLE = "DKD_QUIET"
_PLAIN_SECONDS = 10.0
_WAIT_SECONDS = 2.0
_RATE_SECONDS = 600.0  # that time left is reckoned from: a shard may take minutes
_waits = threading.Lock()  # one wait is shown at a time: of one within another, the outer
_results: TextIO | None = None


class Advance(Protocol):
    def __call__(self, done: float, note: str = "", total: float | None = None) -> None: ...


def is_quiet() -> bool:
    return bool(os.environ.get(QUIET_VARIABLE))


def set_quiet() -> None:
    """For this process and those it starts."""
    os.environ[QUIET_VARIABLE] = "1"


def claim_stdout() -> None:
    """From now on only `results()` reaches this process's standard output, and libraries show no bars of theirs."""
    global _results
    if _results is None:
        sys.stdout.flush()
        _results = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


def results() -> TextIO:
    """Where a command's result goes."""
    return _results or sys.stdout


def console() -> Any:
    return _console(is_quiet())


@lru_cache
def _console(quiet: bool) -> Any:
    """One for all: what is said while a bar is shown goes above it, which only the bar's own console does."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, highlight=False)


def say(text: str) -> None:
    console().print(text, soft_wrap=True)


class Pace:
    """How many of something a second since it was made, in words for the note beside a bar."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._begun = time.monotonic()

    def __call__(self, done: float) -> str:
        rate = done / max(time.monotonic() - self._begun, 1e-9)
        return f"{rate:,.0f} {self._unit}/s" if rate >= 10 else f"{rate:.2g} {self._unit}/s"


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Says what is done in the block, and since when, where nobody knows how far it is.

    Without a terminal one line, where it takes more than two seconds.
    """
    out = console()
    if is_quiet() or not _waits.acquire(blocking=False):
        yield
        return
    try:
        yield from _spinner(out, description) if out.is_terminal else _late_line(out, description)
    finally:
        _waits.release()


def _spinner(out: Any, description: str) -> Iterator[None]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=out, transient=True) as shown:
        shown.add_task(description, total=None)
        yield


def _late_line(out: Any, description: str) -> Iterator[None]:
    timer = threading.Timer(_WAIT_SECONDS, lambda: out.print(description, soft_wrap=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # a thread that wakes up while the process ends has taken it down


@contextmanager
def progress(description: str, total: float) -> Iterator[Advance]:
    """Yields `advance(done, note, total)`: the work done so far, a few words beside the bar, and all of it anew."""
    out = console()
    if is_quiet():
        yield lambda done, note="", total=None: None
    elif out.is_terminal:
        yield from _bar(out, description, total)
    else:
        yield _plain(out, description, total)


def _bar(out: Any, description: str, total: float) -> Iterator[Advance]:
    """The note is beneath: beside it, it would leave a terminal of 80 columns no room for the time that is left."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    columns = (
        TextColumn("{task.description:>9}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    bar = Progress(*columns, console=out, speed_estimate_period=_RATE_SECONDS)
    task = bar.add_task(description, total=total)
    beneath = Text(no_wrap=True, overflow="ellipsis")

    def advance(done: float, note: str = "", total: float | None = None) -> None:
        bar.update(task, completed=done, total=total)
        beneath.plain = f"{'':>10}{note}"

    with Live(Group(bar, beneath), console=out, refresh_per_second=10):
        yield advance


def _plain(out: Any, description: str, total: float) -> Advance:
    begun = said = time.monotonic()
    told = -1.0

    all_of_it = total

    def advance(done: float, note: str = "", total: float | None = None) -> None:
        nonlocal said, told, all_of_it
        total = all_of_it = all_of_it if total is None else total
        now = time.monotonic()
        if done == told or (now - said < _PLAIN_SECONDS and done < total):
            return
        said, told = now, done
        left = (now - begun) * (total - done) / done if done else float("inf")
        remaining = f", {left:.0f} s left" if 0 < left < float("inf") else ""
        out.print(
            f"{description}: {done:,.0f} of {total:,.0f} after {now - begun:.0f} s{remaining}  {note}", soft_wrap=True
        )

    return advance
