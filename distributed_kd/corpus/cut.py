"""Where a source is cut for its readers, found while its digest is taken, so that its bytes are read once for both.

A block is a run of whole files: documents are packed end to end within one. A task reads pieces of a block; a file
larger than a piece is cut where its format allows, at lines, row groups or record batches. Pieces only share the work
out: what is packed is the same however they are cut.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol, TypeVar

from distributed_kd import console
from distributed_kd.corpus.bytes_of import STRETCH_BYTES, open_bytes, stretches
from distributed_kd.corpus.packing import id_of_digest
from distributed_kd.corpus.source import SourceFile
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Corpus
from distributed_kd.store.digest import canonical_json, sha256
from distributed_kd.store.filesystem import open_filesystem

_READ_BYTES = 4 << 20
_THREADS = 8
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # Arrow's


@dataclass(frozen=True)
class Piece:
    """A part of a file for one task: bytes [begin, end) of it, or row groups where it is Parquet."""

    file: SourceFile
    begin: int
    end: int
    before: int = 0  # lines or rows before it, for messages
    bytes: int = 0  # about how much there is to read
    document: int | None = None  # the document that a long text is, of which this is a part


@dataclass(frozen=True)
class Survey:
    sha256: str
    pieces: list[Piece]


@dataclass(frozen=True)
class _Cut:
    """A place where a piece may end: its bytes are those since the cut before."""

    end: int
    rows: int  # lines or rows up to it
    bytes: int


class _Sized(Protocol):
    @property
    def bytes(self) -> int: ...


_T = TypeVar("_T", bound=_Sized)


def runs_of(items: list[_T], block_bytes: int) -> list[list[_T]]:
    """Runs of whole items of about `block_bytes` each: files to blocks, a block's pieces to tasks."""
    runs: list[list[_T]] = []
    filled = block_bytes
    for item in items:
        if filled >= block_bytes:
            runs.append([])
            filled = 0
        runs[-1].append(item)
        filled += item.bytes
    return runs


def survey(files: list[SourceFile], corpus: Corpus) -> list[Survey]:
    """Reads every byte once. Raises `RequestError` for a file that is none of its format."""
    done, pace, counting = 0, console.Pace("bytes"), Lock()
    with console.progress("survey", sum(file.bytes for file in files)) as advance:

        def count(size: int) -> None:
            nonlocal done
            with counting:
                done += size
                advance(done, pace(done))

        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(lambda file: _survey(file, corpus, count), files))


def digest_of(files: list[SourceFile], surveys: list[Survey]) -> dict[str, Any]:
    """What the source holds: number of files, bytes, and one digest over the files' own, in order."""
    return {
        "files": len(files),
        "bytes": sum(file.bytes for file in files),
        "sha256": sha256(canonical_json([survey.sha256 for survey in surveys])),
    }


def _survey(file: SourceFile, corpus: Corpus, count: Callable[[int], None]) -> Survey:
    stored = SourceFile(file.uri, file.format, file.bytes)  # as it lies there, compressed or not
    with open_bytes(stored) as raw:
        stream = _Digesting(raw, count)
        cuts = list(_cuts(file, stream, corpus.block_bytes))
        while stream.read(_READ_BYTES):
            pass
    if file.format == "datasets" and stream.tail != _END_OF_STREAM:
        raise RequestError(f"{file.uri} is not a whole Arrow stream: it does not end as one; copy or save it again")
    digest = stream.sha256.hexdigest()
    is_long = file.format == "text" and file.compression is None and file.bytes > STRETCH_BYTES
    document = id_of_digest(stream.sha256.digest()) if is_long else None
    if file.format == "text" and corpus.sequences_per_document is not None:
        cuts = []  # windows are drawn among all of a document's, so one task sees them all
    pieces: list[Piece] = []
    begin = rows = held = 0
    for cut in cuts:
        held += cut.bytes
        if held >= corpus.block_bytes:
            pieces.append(Piece(file, begin, cut.end, rows, held, document))
            begin, rows, held = cut.end, cut.rows, 0
    if cuts or file.format == "parquet":
        last = cuts[-1] if cuts else _Cut(0, 0, 0)
    else:
        last = _Cut(file.bytes, 0, file.bytes)
    if begin < last.end:
        pieces.append(Piece(file, begin, last.end, rows, held or last.bytes, document))
    return Survey(digest, pieces)


def _cuts(file: SourceFile, stream: _Digesting, block_bytes: int) -> Iterator[_Cut]:
    """The cuts of a file, the last at its end; Parquet's are row groups. None: it is read whole."""
    if file.format == "parquet":
        yield from _row_groups(file)
    elif file.bytes <= block_bytes or file.compression is not None:
        return
    elif file.format == "text":
        place = 0
        for stretch in stretches(io.BufferedReader(stream)):
            place += len(stretch)
            yield _Cut(place, 0, len(stretch))
    elif file.format == "jsonl":
        yield from _line_ends(stream, block_bytes)
    else:
        yield from _record_batches(file, stream)


def _line_ends(stream: _Digesting, block_bytes: int) -> Iterator[_Cut]:
    """The first end of a line after each `block_bytes`, and the end of the file."""
    place = lines = begin = 0
    while data := stream.read(_READ_BYTES):
        start = 0
        while (end := data.find(b"\n", max(start, begin + block_bytes - 1 - place)) + 1) > 0:
            lines += data.count(b"\n", start, end)
            yield _Cut(place + end, lines, place + end - begin)
            start, begin = end, place + end
        lines += data.count(b"\n", start)
        place += len(data)
    if begin < place:
        yield _Cut(place, lines, place - begin)


def _row_groups(file: SourceFile) -> Iterator[_Cut]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fs, path = open_filesystem(file.uri)
    try:
        with fs.open(path, "rb") as stream:
            metadata = pq.read_metadata(stream)
        rows = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            rows += group.num_rows
            stored = sum(group.column(column).total_compressed_size for column in range(group.num_columns))
            yield _Cut(number + 1, rows, stored)
    except (pa.ArrowException, OSError) as error:
        raise RequestError(f"{file.uri} is not Parquet: {' '.join(str(error).split())}") from error


def _record_batches(file: SourceFile, stream: _Digesting) -> Iterator[_Cut]:
    """The record batches of an Arrow stream, found by reading its messages one after the other."""
    import pyarrow as pa

    rows = begin = 0
    try:
        messages = pa.ipc.MessageReader.open_stream(pa.PythonFile(stream, "r"))
        schema = pa.ipc.read_schema(messages.read_next_message())
        for message in messages:
            if message.type == "record batch":
                rows += pa.ipc.read_record_batch(message, schema).num_rows
            yield _Cut(stream.place, rows, stream.place - begin)
            begin = stream.place
    except (pa.ArrowException, OSError, EOFError, StopIteration) as error:
        raise RequestError(f"{file.uri} is not a whole Arrow stream: {' '.join(str(error).split())}") from error


class _Digesting(io.RawIOBase):
    """A stream's bytes on their way, into a digest; `count` is told how many."""

    def __init__(self, stream: io.BufferedReader, count: Callable[[int], None]) -> None:
        self._stream = stream
        self._count = count
        self.sha256 = hashlib.sha256()
        self.place = 0
        self.tail = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.sha256.update(data)
        self.place += len(data)
        last = len(_END_OF_STREAM)
        self.tail = (self.tail + data[-last:])[-last:]
        self._count(len(data))
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
