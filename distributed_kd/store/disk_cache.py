"""A bounded folder of files by their sha256, shared by the processes of a host.

Who reads an object store reads each shard once an epoch, and the ranks of a host read many of the same ones. fsspec's
own caches know neither a bound nor a digest, and `diskcache` unpickles; this is the little that is needed. A file
enters whole, and is good as long as its digest is its name, which is looked at whenever it is read and not once: a disk
may lose bits later, and sha256 is a fraction of what decoding takes. One process reads it from the store while others
that want it wait. A lock falls with the process that held it. Beyond the bound the files that were used longest ago go;
who has one open keeps it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from distributed_kd.store.digest import sha256
from distributed_kd.store.failures import readable
from distributed_kd.store.whole import remove_leftovers, whole_file

_LOCKS = 256  # files that locks are, however many digests there are


class DiskCache:
    """`limit`: bytes that the files take at most, the newest one aside."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._files, self._locks = folder / "files", folder / "locks"
        self._limit = limit
        for made in (self._files, self._locks):
            made.mkdir(parents=True, exist_ok=True)
        remove_leftovers(str(self._files))

    def read(self, digest: str, fetch: Callable[[], bytes]) -> bytes:
        """The bytes of that sha256: the file's, or where it is not there or not good, what `fetch` gives.

        Raises what `fetch` raises, and `StoreError` where the folder cannot be written.
        """
        path = self._files / digest
        data = _good(path)
        if data is not None:
            return data
        with FileLock(self._locks / f"{int(digest[:8], 16) % _LOCKS:03d}"):
            data = _good(path)  # another process may have been first
            if data is not None:
                return data
            data = fetch()
            with readable(str(path), "written"), whole_file(str(path)) as file:
                file.write(data)
        self._evict(keep=path)
        return data

    def _evict(self, keep: Path) -> None:
        with FileLock(self._locks / "eviction"):
            found = []
            for entry in os.scandir(self._files):
                try:
                    found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
                except FileNotFoundError:  # written under another name until now
                    continue
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= self._limit:
                    return
                if path != str(keep):
                    Path(path).unlink(missing_ok=True)
                    total -= size


def _good(path: Path) -> bytes | None:
    """The file's bytes, marked as used now; None where it is not there, or not what its name says."""
    try:
        data = path.read_bytes()
        os.utime(path)
    except FileNotFoundError:
        return None
    return data if sha256(data) == path.name else None
