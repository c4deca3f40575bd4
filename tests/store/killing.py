"""A process that is killed by SIGKILL at one step of its writing, whichever is wanted.

A step is what changes the disk or makes it keep a change: a file made, its bytes written (all of them, or half),
flushed, renamed or removed, a folder made or flushed. They are counted where Python hands them to the system.
"""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any


class Killer:
    """Counts steps, in the process that it is installed in, and ends the process in place of step `last`.

    half: a step that writes is done for the first half of its bytes.
    """

    def __init__(self, last: int | None, half: bool = False) -> None:
        self.last, self.half = last, half
        self.steps: list[str] = []

    def install(self) -> None:
        for name in ("replace", "fsync", "mkdir", "remove"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        builtins.open = self._counted("open", builtins.open)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            if name == "open" and not set("wxa+") & set(named.get("mode", arguments[1] if arguments[1:] else "r")):
                return call(*arguments, **named)
            self.step(name)
            result = call(*arguments, **named)
            return _Watched(result, self) if name == "open" else result

        return counted

    def step(self, name: str, first_half: Callable[[], None] = lambda: None) -> None:
        if len(self.steps) == self.last:
            if self.half:
                first_half()
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps.append(name)


class _Watched:
    """A file whose writes and flushes are steps."""

    def __init__(self, file: Any, killer: Killer) -> None:
        self._file, self._killer = file, killer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        def first_half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._killer.step("write", first_half)
        return int(self._file.write(data))

    def flush(self) -> None:
        self._killer.step("flush")
        self._file.flush()


def steps_of(work: Callable[[], None]) -> list[str]:
    """The steps of `work`, done to its end in a process of its own."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            killer = Killer(None)
            killer.install()
            work()
            os.write(writer, " ".join(killer.steps).encode())
            os._exit(0)
        finally:
            os._exit(1)  # whatever was raised, the child must not go on as the test
    os.close(writer)
    with open(reader) as pipe:
        steps = pipe.read().split()
    assert os.waitpid(child, 0)[1] == 0
    return steps


def kills(work: Callable[[], None], steps: list[str]) -> Iterator[str]:
    """Does `work` in one process after another, each killed at another step; names the step once it is dead."""
    for last, name in enumerate(steps):
        for half in (False, True) if name == "write" else (False,):
            if (child := os.fork()) == 0:
                try:
                    Killer(last, half).install()
                    work()
                finally:
                    os._exit(1)  # it should be dead
            status = os.waitpid(child, 0)[1]
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"step {last}, {name}: {status}"
            yield f"{'half of' if half else 'before'} step {last}, {name}"
