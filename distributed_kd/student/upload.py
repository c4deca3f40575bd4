"""Checkpoints on their way to a bucket, in the background: training goes on meanwhile, and one is on its way at most
(two where a training that is asked to stop does not wait for the one before).

The first rank of each host uploads what its host's ranks have written, and tells rank 0, which puts the marker when all
have. They tell one another through the watch's store and not in a collective: training has those, in its own thread and
with a timeout. What fails is one line: the checkpoint is still on the hosts' disks, and training goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from distributed_kd import console
from distributed_kd.errors import DkdError
from distributed_kd.launch.watch import Watch
from distributed_kd.store.failures import reason_of
from distributed_kd.store.filesystem import Store


class Uploads:
    """Of one rank. `uploaders`: the ranks that upload; rank 0 is one of them. name: of this training, for the watch."""

    def __init__(self, store: Store, watch: Watch, name: str, uploaders: list[int]) -> None:
        self._store, self._watch, self._name, self._uploaders = store, watch, name, uploaders
        self._on_its_way: str | None = None

    def begin(self, folder: Path, tag: str, files: list[str], complete: Callable[[Store], None]) -> None:
        """Uploads these files of folder/tag; `complete`, called by rank 0 once all are there, makes it complete.

        All ranks call it, after `wait`; those that are no uploaders without files.
        """
        self._on_its_way = tag
        if self._watch.rank in self._uploaders:
            arguments = (folder, tag, files, complete)
            threading.Thread(target=self._upload, args=arguments, name="dkd-upload", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Returns once nothing is on its way, or after so many seconds with a line. All ranks call it."""
        if self._on_its_way is None:
            return
        told = self._watch.hear(self._key(self._on_its_way), seconds)
        if told is None and self._watch.rank == 0:
            console.say(
                f"train: checkpoint {self._on_its_way} is not in {self._store.uri} after {seconds:g} more s, and is no "
                "longer waited for; it is on the disks of its hosts"
            )
        self._on_its_way = None

    def _upload(self, folder: Path, tag: str, files: list[str], complete: Callable[[Store], None]) -> None:
        def put() -> None:
            for file in files:
                self._store.put_file(str(folder / tag / file), f"{tag}/{file}")

        failed = _failure(put)
        if self._watch.rank:
            self._watch.tell(self._key(tag, self._watch.rank), failed)
            return
        of_others = [self._watch.ask(self._key(tag, rank)) for rank in self._uploaders if rank]
        failed = next(filter(None, [failed, *of_others]), "") or _failure(lambda: complete(self._store))
        if failed:
            console.say(
                f"train: checkpoint {tag} did not get into {self._store.uri}: {failed}; training goes on, and it is on "
                "the disks of its hosts alone"
            )
        self._watch.tell(self._key(tag), failed)

    def _key(self, tag: str, rank: int | str = "all") -> str:
        return f"upload/{self._name}/{tag}/{rank}"


def _failure(work: Callable[[], None]) -> str:
    """Why it failed, in a line; empty where it did not. Whatever it was: nobody else would see it in this thread."""
    try:
        work()
    except DkdError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {reason_of(error)}"
    return ""
