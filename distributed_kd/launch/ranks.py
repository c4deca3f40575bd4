"""What `dkd train` leaves for the ranks that it starts, and what they leave for it.

A folder of notes, local where all ranks are on this host, else in the workdir, which all of them see: `spec.json` from
here, and `stop` where they are to; `progress.json` from rank 0 and `error-RANK.json` from whichever rank met one.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distributed_kd import console
from distributed_kd.errors import DkdError, RequestError, Stopped, StoreError, WorkError
from distributed_kd.launch.watch import Verdict
from distributed_kd.recipe import Recipe
from distributed_kd.store.filesystem import Store

_SPEC, _PROGRESS, _STOP = "spec.json", "progress.json", "stop"
_CARRY_SECONDS = 0.5
_LOOK_SECONDS = 1.0
_KINDS: dict[int, type[DkdError]] = {0: Stopped, RequestError.exit_code: RequestError}


@dataclass(frozen=True)
class Spec:
    """What a rank is to do."""

    recipe: dict[str, Any]
    arm: str
    begun: float  # when it was launched, in Unix time


class Notes:
    """Both sides of the folder."""

    def __init__(self, uri: str) -> None:
        self.store = Store(uri)

    def begin(self, recipe: Recipe, arm: str) -> None:
        self.store.put(_SPEC, json.dumps(asdict(Spec(recipe.model_dump(mode="json"), arm, time.time()))).encode())

    def spec(self) -> Spec:
        """Raises `RequestError` on a host that does not see the folder."""
        try:
            return Spec(**json.loads(self.store.read(_SPEC)))
        except FileNotFoundError as error:
            import socket

            raise RequestError(
                f"{self.store.uri} is not there on host {socket.gethostname()}: ranks on several hosts need a "
                "`workdir` that all of them see, in a bucket or on a shared disk"
            ) from error

    def tell_progress(self, progress: bytes | None) -> None:
        if progress is not None:
            self.store.put(_PROGRESS, progress)

    def take_back(self) -> None:
        """Of ranks that were lost."""
        self.store.delete(_PROGRESS)

    def progress(self) -> dict[str, Any] | None:
        return self._read(_PROGRESS)

    def ask_to_stop(self) -> None:
        self.store.put(_STOP, b"")

    def is_asked_to_stop(self) -> bool:
        return self.store.exists(_STOP)

    def tell_error(self, rank: int, verdict: Verdict) -> None:
        self.store.put(f"error-{rank}.json", json.dumps(asdict(verdict)).encode())

    def error(self) -> Verdict | None:
        """That of the first rank that told one."""
        told = [name for name in self.store.list("") if name.startswith("error-")]
        found = self._read(told[0]) if told else None
        return None if found is None else Verdict(**found)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.store.read(name))
        except FileNotFoundError:
            return None
        return found


def error_of(verdict: Verdict) -> DkdError:
    return _KINDS.get(verdict.exit_code, WorkError)(verdict.message)


@contextmanager
def shown(arm: str, read: Callable[[], dict[str, Any] | None], seconds: float) -> Iterator[None]:
    """Shows the progress that `read` finds every so many seconds, while the block runs.

    Progress that is taken back is that of ranks which were lost and start again.
    """

    def show(ended: threading.Event) -> None:
        state = None
        last = lost = False

        def after(state: dict[str, Any]) -> dict[str, Any]:
            """What is read now, or what was known before."""
            nonlocal lost
            with contextlib.suppress(StoreError):  # it is asked again
                found = read()
                if found is None and not lost:
                    console.say(f"train: a rank was lost; the {arm} goes on from the last checkpoint")
                lost = found is None
                return found or state
            return state

        with console.waiting(f"{arm}: starting, until the first step"):
            while state is None and not last:
                last = ended.wait(seconds)
                state = read()
        while state is not None:
            with console.progress(arm, state["total"]) as advance:
                advance(state["done"], state["note"])
                while not last and state["done"] < state["total"]:
                    last = ended.wait(seconds)
                    state = after(state)
                    advance(state["done"], state["note"])
            with console.waiting(f"{arm}: all steps are done; its weights are gathered and written"):
                while not last and state["done"] >= state["total"]:
                    last = ended.wait(seconds)
                    state = after(state)
            if last:
                return

    with _beside(show):
        yield


@contextmanager
def carried(folder: Path, notes: Notes) -> Iterator[None]:
    """Carries this rank's progress from a folder of its host's to the notes while the block runs."""

    def carry(ended: threading.Event) -> None:
        told = None
        while True:
            last = ended.wait(_CARRY_SECONDS)
            file = folder / _PROGRESS
            found = file.read_bytes() if file.exists() else None
            if found != told:
                with contextlib.suppress(StoreError):  # it is told again
                    notes.tell_progress(found)
                    told = found
            if last:
                return

    with _beside(carry):
        yield


@contextmanager
def stop_heard(notes: Notes, asked: threading.Event) -> Iterator[None]:
    """Sets `asked` once the notes ask to stop, while the block runs: a signal does not get to Ray's workers."""

    def hear(ended: threading.Event) -> None:
        while not ended.wait(_LOOK_SECONDS) and not asked.is_set():
            with contextlib.suppress(StoreError):  # it is asked again
                if notes.is_asked_to_stop():
                    asked.set()

    with _beside(hear):
        yield


@contextmanager
def _beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs it in a thread, which is told when the block has ended and is waited for."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), name=f"dkd-{work.__name__}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
