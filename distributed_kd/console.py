"""What a person sees while work goes on: progress with time left, plain lines without a terminal, nothing if quiet.

Everything goes to standard error, so that standard output carries results alone: libraries that print there too
are sent to standard error by `claim_stdout`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

QUIET_VARIABLE = "DKD_QUIET"
_PLAIN_SECONDS = 10.0
_results: TextIO | None = None


class Advance(Protocol):
    def __call__(self, done: float, note: str = "") -> None: ...


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
    from rich.console import Console

    return Console(stderr=True, quiet=is_quiet(), highlight=False)


def say(text: str) -> None:
    console().print(text, soft_wrap=True)


@contextmanager
def progress(description: str, total: float) -> Iterator[Advance]:
    """Yields `advance(done, note)`: the work done so far out of `total`, and a few words beside the bar."""
    out = console()
    if is_quiet():
        yield lambda done, note="": None
    elif out.is_terminal:
        yield from _bar(out, description, total)
    else:
        yield _plain(out, description, total)


def _bar(out: Any, description: str, total: float) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=out) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


def _plain(out: Any, description: str, total: float) -> Advance:
    begun = said = time.monotonic()
    told = -1.0

    def advance(done: float, note: str = "") -> None:
        nonlocal said, told
        now = time.monotonic()
        if done == told or (now - said < _PLAIN_SECONDS and done < total):
            return
        said, told = now, done
        left = (now - begun) * (total - done) / done if done else float("inf")
        remaining = f", {left:.0f} s left" if 0 < left < float("inf") else ""
        out.print(f"{description}: {done:g} of {total:g} after {now - begun:.0f} s{remaining}  {note}", soft_wrap=True)

    return advance
