"""A folder of files, local or in a bucket, in which every file appears whole or not at all.

Built on fsspec, so local paths, s3://, gs:// and memory:// work alike. `whole.py` says how a file appears on a local
disk; on an object store one put is atomic by itself. A file is one put up to 5 GiB, the most that S3 takes; a larger
one goes up in parts and appears with the confirmation of them all. In parts sooner would be no safer: a confirmation
whose answer is lost cannot be made again. `retries.py` says how often a request is made again, `failures.py` what is
told when that was in vain.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from contextlib import suppress
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem

from distributed_kd.errors import RequestError, StoreRefused
from distributed_kd.store import retries
from distributed_kd.store.failures import readable, reason_of, without_secrets
from distributed_kd.store.whole import TEMPORARY, remove_leftovers, whole_file

_ONE_PUT = 5 << 30
# How long a call may take with all that is asked again: a peer that stops in the middle would be waited for for ever.
_SECONDS = 300.0
_SLOWEST = 1_000_000  # bytes a second, of what is written


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
        with readable(f"{self.uri}/{name}", "read"):
            return bool(self._call("exists", self.path(name)))

    def read(self, name: str, at_most: int | None = None) -> bytes:
        """The whole file; with `at_most`, not more than its first so many bytes. Raises `FileNotFoundError`."""
        path = self.path(name)
        with readable(f"{self.uri}/{name}", "read"):
            try:  # as a range, which is one request: what s3fs cuts a large file into is not asked for again
                return bytes(self._call("cat_file", path, start=0, end=at_most))
            except OSError as error:
                if error.errno == errno.EINVAL and self._call("size", path) == 0:  # an empty object has no range in it
                    return b""
                raise

    def put(self, name: str, data: bytes) -> None:
        """Writes the whole file or nothing: a reader never sees a part of it, whenever the writer dies."""
        path = self.path(name)
        with readable(f"{self.uri}/{name}", "written"):
            if self.is_local:
                with whole_file(path) as file:
                    file.write(data)
                return
            one_put = {"chunksize": _ONE_PUT} if _protocols(self.fs)[0] in ("s3", "gs") else {}
            self._call("pipe_file", path, data, seconds=_SECONDS + len(data) / _SLOWEST, **one_put)

    def put_file(self, source: str, name: str) -> None:
        """As `put`, of a local file of any size."""
        path = self.path(name)
        with readable(f"{self.uri}/{name}", "written"):
            if self.is_local:
                with open(source, "rb") as reader, whole_file(path) as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
            else:
                seconds = _SECONDS + os.path.getsize(source) / _SLOWEST
                self._call("put_file", source, path, seconds=seconds)

    def get_file(self, name: str, target: str) -> None:
        """Copies a file of any size to the local `target`, whose folder is there; whole or not at all.

        Raises `FileNotFoundError`.
        """
        with readable(f"{self.uri}/{name}", "read"):
            temporary = f"{target}.{uuid.uuid4().hex}{TEMPORARY}"
            try:  # s3fs asks again where an answer stops, from there on
                seconds = _SECONDS + self._call("size", self.path(name)) / _SLOWEST
                self._call("get_file", self.path(name), temporary, seconds=seconds)
                os.replace(temporary, target)
            finally:
                with suppress(FileNotFoundError):
                    os.remove(temporary)

    def _call(self, method: str, *arguments: Any, seconds: float = _SECONDS, **named: Any) -> Any:
        """A call of the driver, given up after so many seconds where it can be."""
        if isinstance(self.fs, AsyncFileSystem):
            named["timeout"] = seconds
        return getattr(self.fs, method)(*arguments, **named)

    def remove_leftovers(self, *folders: str) -> None:
        """Removes what killed writers left directly in these folders ("" is the store's own). Live ones go on."""
        if self.is_local:
            for folder in folders:
                remove_leftovers(self.path(folder))

    def _names(self, folder: str, kind: str) -> list[str]:
        path = self.path(folder)
        self.fs.invalidate_cache(path)
        try:
            with readable(f"{self.uri}/{folder}", "read"):
                entries = self._call("ls", path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(os.path.basename(entry["name"].rstrip("/")) for entry in entries if entry["type"] == kind)

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly in `folder`, sorted; empty when there is none."""
        return self._names(folder, "directory")

    def list(self, folder: str) -> list[str]:
        """Names (not paths) of the files directly in `folder`, sorted; empty when there is none."""
        return [name for name in self._names(folder, "file") if not name.endswith(TEMPORARY)]

    def delete(self, name: str) -> None:
        """Removes a file or a folder with all it holds; what is not there is no error."""
        if self.exists(name):
            with readable(f"{self.uri}/{name}", "written"):
                self._call("rm", self.path(name), recursive=True)

    def check_writable(self) -> None:
        """Raises `RequestError` when a file cannot be written and removed here, `StoreError` when it may be later."""
        probe = f".write-probe-{uuid.uuid4().hex}"
        try:
            self.put(probe, b"dkd")
            self.delete(probe)
        except StoreRefused as error:
            reason = reason_of(error.__cause__ or error)
            raise RequestError(
                f"workdir {self.uri} cannot be written: {reason}; choose another `workdir`, or mend what it says"
            ) from error

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
    """The fsspec filesystem of a URL and the path in it. Raises `RequestError` when the driver is missing.

    A URL that holds what opens the store is refused: artifacts name the URLs that they were made from.
    """
    if without_secrets(uri) != uri:
        raise RequestError(
            f"{without_secrets(uri)}: a password or a signature in a URL would be written down; leave it out and give "
            "it in the environment (for s3:// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile)"
        )
    try:
        with readable(uri, "read"):
            return fsspec.url_to_fs(uri, **retries.options(uri))
    except ImportError as error:
        scheme = uri.split(":")[0]
        raise RequestError(
            f"{uri}: no driver for {scheme}:// here ({error}); for s3:// run `pip install 'distributed-kd[s3]'`, for "
            "gs:// `pip install 'distributed-kd[gcs]'`"
        ) from error
    except ValueError as error:
        raise RequestError(f"{uri} is not a path or URL this can open: {error}") from error


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
