"""Documents out of a piece of a source: a .txt file is one, and so is a line or a row of anything else.

A piece is read as a stream, a line or a batch of rows at a time, so that a file may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distributed_kd.corpus.bytes_of import BUFFER_BYTES, DamagedError, open_bytes, stretches
from distributed_kd.corpus.conversation import Messages, messages_of
from distributed_kd.corpus.cut import Piece
from distributed_kd.corpus.packing import document_id, id_of_digest
from distributed_kd.corpus.source import SourceFile
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Corpus
from distributed_kd.store.digest import canonical_json
from distributed_kd.store.filesystem import open_filesystem

_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Document:
    """A text or a conversation; of a long text, one stretch of it."""

    id: int
    content: str | Messages
    place: str  # file and line or row, for messages
    begins: bool = True
    ends: bool = True


def documents(piece: Piece, corpus: Corpus) -> Iterator[Document]:
    """The documents of a piece, in order. Raises `RequestError` naming the file and the place of what is wrong."""
    if piece.file.format == "text":
        yield from _texts(piece)
        return
    rows = {"jsonl": _json_rows, "parquet": _parquet_rows, "datasets": _arrow_rows}[piece.file.format]
    for place, value in rows(piece, _column(corpus)):
        yield _document(place, value, corpus)


def _document(place: str, value: Any, corpus: Corpus) -> Document:
    content: str | Messages
    if corpus.task == "chat":
        content = messages_of(value, f"{place}: column {corpus.messages_column!r}")
    elif isinstance(value, str):
        content = value
    else:
        raise RequestError(f"{place}: column {corpus.text_column!r} is {type(value).__name__}, not a text")
    try:
        text = content if isinstance(content, str) else canonical_json(content).decode()
        return Document(document_id(text), content, place)
    except UnicodeEncodeError as error:
        raise RequestError(f"{place} holds half a surrogate pair, which is no text; repair that row") from error


def _column(corpus: Corpus) -> tuple[str, str]:
    """(the recipe's key, the column's name) of what is read."""
    if corpus.task == "chat":
        return "messages_column", corpus.messages_column
    return "text_column", corpus.text_column


def _texts(piece: Piece) -> Iterator[Document]:
    """A file, or stretches of one, as a document of one id: that of all its bytes."""
    file, place = piece.file, piece.begin
    left, identity = piece.end - piece.begin, piece.document
    try:
        with open_bytes(file, piece.begin) as stream:
            parts = stretches(stream)
            part = next(parts, b"")
            while part:
                following = next(parts, b"") if file.compression or len(part) < left else b""
                text = _decode(part, file.uri, place)
                if identity is None:
                    identity = _id_of_all(file) if following else document_id(text)
                ends = not following and (file.compression is not None or piece.end == file.bytes)
                yield Document(identity, text, file.uri, begins=place == 0, ends=ends)
                place, left, part = place + len(part), left - len(part), following
    except DamagedError as error:
        raise _damaged(f"{file.uri} after byte {place} of its text", file, error) from error


def _id_of_all(file: SourceFile) -> int:
    digest = hashlib.sha256()
    with open_bytes(file) as stream:
        while data := stream.read(BUFFER_BYTES):
            digest.update(data)
    return id_of_digest(digest.digest())


def _decode(data: bytes, uri: str, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{uri} is not UTF-8: byte {offset + error.start} cannot be decoded; convert the file first"
        ) from error


def _json_rows(piece: Piece, column: tuple[str, str]) -> Iterator[tuple[str, Any]]:
    uri, number = piece.file.uri, piece.before
    left = piece.end - piece.begin
    try:
        with open_bytes(piece.file, piece.begin) as stream:
            for line in stream:
                number += 1
                if line.strip():
                    place = f"{uri} line {number}"
                    yield place, _json_value(line, column, place)
                left -= len(line)
                if left <= 0 and piece.file.compression is None:
                    return
    except DamagedError as error:
        raise _damaged(f"{uri} after line {number}", piece.file, error) from error


def _damaged(where: str, file: SourceFile, error: DamagedError) -> RequestError:
    return RequestError(f"{where}: what follows is no {file.compression}, or not all of it ({error}); copy it again")


def _json_value(line: bytes, column: tuple[str, str], place: str) -> Any:
    key, name = column
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{place} is not UTF-8: byte {error.start} of the line cannot be decoded; convert the file first"
        ) from error
    except json.JSONDecodeError as error:
        raise RequestError(f"{place} is not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        raise RequestError(f"{place} is no JSON that this reads: {error}") from error
    if not isinstance(row, dict) or name not in row:
        keys = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
        raise RequestError(f"{place} has no column {name!r} (it has: {keys}); set corpus.{key}")
    return row[name]


def _parquet_rows(piece: Piece, column: tuple[str, str]) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    uri, row = piece.file.uri, piece.before
    fs, path = open_filesystem(uri)
    with fs.open(path, "rb") as stream:
        try:
            # A buffer: without one a whole column of a row group is held.
            table = pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False)
            _check_column(table.schema_arrow, column, uri)
            groups = list(range(piece.begin, piece.end))
            for batch in table.iter_batches(_BATCH_ROWS, groups, columns=[column[1]], use_threads=False):
                yield from _values(batch, column, uri, row)
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise RequestError(f"{uri} is damaged after row {row}: {' '.join(str(error).split())}") from error


def _arrow_rows(piece: Piece, column: tuple[str, str]) -> Iterator[tuple[str, Any]]:
    """The record batches of an Arrow stream between two bytes of it, by the schema at its beginning."""
    import pyarrow as pa

    uri, row = piece.file.uri, piece.before
    fs, path = open_filesystem(uri)
    with fs.open(path, "rb") as raw:
        try:
            stream = pa.PythonFile(raw, "r")
            schema = pa.ipc.read_schema(pa.ipc.read_message(stream))
            _check_column(schema, column, uri)
            if piece.begin:
                stream.seek(piece.begin)
            while stream.tell() < piece.end:
                try:
                    message = pa.ipc.read_message(stream)
                except EOFError:
                    break
                if message.type != "record batch":
                    continue
                batch = pa.ipc.read_record_batch(message, schema)
                yield from _values(batch, column, uri, row)
                row += batch.num_rows
        except (pa.ArrowException, OSError, EOFError) as error:
            raise RequestError(
                f"{uri} is no whole Arrow stream after row {row}: {' '.join(str(error).split())}; save it again"
            ) from error


def _check_column(schema: Any, column: tuple[str, str], uri: str) -> None:
    """Raises `RequestError` unless the column is there, a text or a list of messages."""
    import pyarrow.types as types

    key, name = column
    if name not in schema.names:
        raise RequestError(f"{uri} has no column {name!r} (it has: {', '.join(schema.names)}); set corpus.{key}")
    kind = schema.field(name).type
    wanted = "a text"
    fits = _is_text(kind)
    if key == "messages_column":
        wanted = "a list of messages of role and content"
        fits = (types.is_list(kind) or types.is_large_list(kind)) and types.is_struct(kind.value_type)
        fits = fits and all(
            kind.value_type.get_field_index(part) >= 0 and _is_text(kind.value_type.field(part).type)
            for part in ("role", "content")
        )
    if not fits:
        raise RequestError(f"{uri}: column {name!r} is {kind}, not {wanted}")


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _values(batch: Any, column: tuple[str, str], uri: str, row: int) -> Iterator[tuple[str, Any]]:
    empty: Any = [] if column[0] == "messages_column" else ""  # what no value stands for
    for number, value in enumerate(batch.column(batch.schema.get_field_index(column[1])).to_pylist(), start=row + 1):
        yield f"{uri} row {number}", empty if value is None else value
