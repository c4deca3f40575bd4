"""Many small files of a store at once: a million requests one after the other, of 20 ms each, take five hours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from fsspec.asyn import AsyncFileSystem

from distributed_kd.store.failures import readable
from distributed_kd.store.filesystem import Store

_REQUESTS_AT_ONCE = 64


def read_many(store: Store, names: list[str], at_most: int, at_once: int = 1000) -> Iterator[tuple[str, bytes]]:
    """(name, the first `at_most` bytes) of each file, in their order; a file that is gone by then is left out.

    at_once: how many files are held in memory.
    """
    for begin in range(0, len(names), at_once):
        some = names[begin : begin + at_once]
        for name, data in zip(some, _read(store, some, at_most), strict=True):
            if data is not None:
                yield name, data


def _read(store: Store, names: list[str], at_most: int) -> list[bytes | None]:
    found: list[object] = [None] * len(names)
    if isinstance(store.fs, AsyncFileSystem):
        paths = [store.path(name) for name in names]
        found = store.fs.cat_ranges(paths, 0, at_most, batch_size=_REQUESTS_AT_ONCE, on_error="return")
    pairs = zip(names, found, strict=True)
    return [one if isinstance(one, bytes) else _read_one(store, name, at_most) for name, one in pairs]


def _read_one(store: Store, name: str, at_most: int) -> bytes | None:
    """Where there is one request at a time, and where that of many failed: it says why, or it is an empty file's."""
    try:
        return store.read(name, at_most)
    except FileNotFoundError:
        return None


def delete_many(store: Store, names: list[str]) -> None:
    """Removes files, many with a request where the store can; one that is not there is no error."""
    if not names:
        return
    with readable(f"{store.uri}/{names[0]}", "written"):
        if not store.is_local:
            with suppress(FileNotFoundError):
                store.fs.rm([store.path(name) for name in names])
            return
        for name in names:
            with suppress(FileNotFoundError):
                os.remove(store.path(name))
