"""A source file's bytes as a stream, decompressed where it is compressed, and a long text as stretches.

Nothing here holds more than a buffer or a stretch, however large the file is or becomes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from distributed_kd.corpus.source import SourceFile
from distributed_kd.store.filesystem import open_filesystem

BUFFER_BYTES = 1 << 20
# A longer text is tokenised stretch by stretch: a tokenizer takes some hundred bytes of memory for each of a text.
STRETCH_BYTES = 16 << 20


class DamagedError(Exception):
    """Compressed data that break off, or are none of their kind; the message says which."""


@contextmanager
def open_bytes(file: SourceFile, begin: int = 0) -> Iterator[io.BufferedReader]:
    """What the file holds, from a byte of it on. Reading may raise `DamagedError`, where it is compressed."""
    fs, path = open_filesystem(file.uri)
    with fs.open(path, "rb") as raw:
        if file.compression is None:
            raw.seek(begin)
            yield io.BufferedReader(raw, BUFFER_BYTES)
        else:
            import pyarrow as pa

            with pa.CompressedInputStream(raw, file.compression) as stream:
                yield io.BufferedReader(cast(io.RawIOBase, _Decompressed(stream)), BUFFER_BYTES)


class _Decompressed(io.RawIOBase):
    """Arrow's stream, which reads on through frames and members and notices when one breaks off."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except OSError as error:
            raise DamagedError(" ".join(str(error).split())) from error


def stretches(stream: io.BufferedReader, size: int = STRETCH_BYTES) -> Iterator[bytes]:
    """A text of UTF-8 in parts of at most `size` bytes that end with a line, or within one longer than that.

    Where they end follows from the bytes alone; begun at the end of one, the following ones are the same.
    """
    held = b""
    while True:
        data = held + stream.read(size + 1 - len(held))
        if len(data) <= size:
            if data:
                yield data
            return
        end = data.rfind(b"\n", 0, size) + 1 or _character_end(data, size)
        yield data[:end]
        held = data[end:]


def _character_end(data: bytes, end: int) -> int:
    """The last place from `end` back at which a character begins; `end` where none does, in what is no UTF-8."""
    return next((place for place in range(end, max(end - 4, 0), -1) if data[place] & 0xC0 != 0x80), end)
