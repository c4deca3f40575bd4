"""A folder of files, local or in a bucket, in which every file appears whole or not at all.

Built on fsspec, so local paths, s3://, gs:// and memory:// work alike. `whole.py` says how a file appears on a local
disk; on an object store one put is atomic by itself.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

import fsspec

from distributed_kd.errors import RequestError
from distributed_kd.store.whole import TEMPORARY, remove_leftovers, whole_file


class Store:
    """Files below one folder. `uri` is a local path or an fsspec URL; names are relative, with `/`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") if uri != "/" else uri
        self.fs, self.root = open_filesystem(self.uri)
        self.is_local = "file" in _protocols(self.fs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.uri,)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def child(self, name: str) -> Store:
        return Store(f"{self.uri}/{name}")

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(self.path(name)))

    def read(self, name: str, at_most: int | None = None) -> bytes:
        """The whole file; with `at_most`, not more than its first so many bytes. Raises `FileNotFoundError`."""
        if at_most is None:
            return bytes(self.fs.cat_file(self.path(name)))
        try:
            return bytes(self.fs.cat_file(self.path(name), start=0, end=at_most))
        except FileNotFoundError:
            raise
        except OSError:
            if self.fs.size(self.path(name)) == 0:  # object stores have no range in an empty object
                return b""
            raise

    def put(self, name: str, data: bytes) -> None:
        """Writes the whole file or nothing: a reader never sees a part of it, whenever the writer dies."""
        path = self.path(name)
        if not self.is_local:
            self.fs.pipe_file(path, data)
            return
        with whole_file(path) as file:
            file.write(data)

    def remove_leftovers(self, *folders: str) -> None:
        """Removes what killed writers left directly in these folders ("" is the store's own). Live ones go on."""
        if self.is_local:
            for folder in folders:
                remove_leftovers(self.path(folder))

    def list(self, folder: str) -> list[str]:
        """Names (not paths) of the files directly in `folder`, sorted; empty when there is none."""
        path = self.path(folder)
        self.fs.invalidate_cache(path)
        try:
            entries = self.fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        names = [os.path.basename(entry["name"]) for entry in entries if entry["type"] == "file"]
        return sorted(name for name in names if not name.endswith(TEMPORARY))

    def delete(self, name: str) -> None:
        """Removes a file or a folder with all it holds; what is not there is no error."""
        if self.exists(name):
            self.fs.rm(self.path(name), recursive=True)

    def check_writable(self) -> None:
        """Raises `RequestError` when a file cannot be written and removed here."""
        probe = f".write-probe-{uuid.uuid4().hex}"
        try:
            self.put(probe, b"dkd")
            self.delete(probe)
        except Exception as error:  # every store raises its own kinds, and all mean the same here
            reason = " ".join(str(error).split())
            raise RequestError(f"workdir {self.uri} cannot be written: {reason}; choose another `workdir`") from error

    def free_bytes(self) -> int | None:
        """Bytes free on the local disk under this folder; None on an object store."""
        if not self.is_local:
            return None
        folder = self.root
        while not os.path.exists(folder):
            folder = os.path.dirname(folder)
        state = os.statvfs(folder)
        return state.f_bavail * state.f_frsize


def open_filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path in it. Raises `RequestError` when the driver is missing."""
    try:
        return fsspec.url_to_fs(uri)
    except ImportError as error:
        scheme = uri.split(":")[0]
        raise RequestError(
            f"{uri}: no driver for {scheme}:// here ({error}); for s3:// run `pip install 'distributed-kd[s3]'`"
        ) from error
    except ValueError as error:
        raise RequestError(f"{uri} is not a path or URL this can open: {error}") from error


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
