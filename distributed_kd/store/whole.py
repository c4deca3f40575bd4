"""Local files that appear whole or not at all, whenever their writer dies, and what dead writers leave behind.

A file is written under a temporary name, flushed to the disk and renamed. Meanwhile its writer holds a lock on it,
which ends with the process: a temporary file that nobody holds is a leftover, and one that somebody holds is not.
"""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

TEMPORARY = ".tmp"
_IS_OURS = re.compile(rf".*\.[0-9a-f]{{32}}{re.escape(TEMPORARY)}")


@contextmanager
def whole_file(path: str) -> Iterator[IO[bytes]]:
    """A file to write, in a folder that is made where it is not there.

    When the block ends, the file is at `path` and on the disk; when the block raises, `path` is as it was.
    """
    folder = os.path.dirname(path)
    _make_folder(folder)
    temporary, file = _held_file(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.remove(temporary)
        raise
    _flush_folder(folder)


def remove_leftovers(folder: str) -> None:
    """Removes what killed writers left directly in `folder`; files that are being written stay, as do all others."""
    if not os.path.isdir(folder):
        return
    for name in filter(_IS_OURS.fullmatch, os.listdir(folder)):
        path = os.path.join(folder, name)
        # Raised where it is held, or finished by now, or where the file system has no locks.
        with suppress(OSError), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.remove(path)


def _held_file(path: str) -> tuple[str, IO[bytes]]:
    """A new file beside `path` and its name."""
    while True:
        temporary = f"{path}.{uuid.uuid4().hex}{TEMPORARY}"
        file = open(temporary, "xb")  # noqa: SIM115 - the caller closes it
        with suppress(OSError):  # a file system without locks, where nothing is ever taken for a leftover
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(temporary):  # else it was taken for one just before it was held
            return temporary, file
        file.close()


def _make_folder(folder: str) -> None:
    """As `os.makedirs`, each new folder's name on the disk: a receipt must not outlive the shards' folder."""
    if os.path.isdir(folder):
        return
    _make_folder(os.path.dirname(folder))
    with suppress(FileExistsError):  # another writer was first; a file in the way is noticed when one is opened in it
        os.mkdir(folder)
    _flush_folder(os.path.dirname(folder))


def _flush_folder(folder: str) -> None:
    # A new name is durable only once its folder is flushed.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
