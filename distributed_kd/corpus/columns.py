"""Some columns of the rows of a piece: lines of JSON, rows of Parquet, or of what `datasets` saved.

A piece is read as a stream, a line or a batch of rows at a time, so that a file may be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.types as types

from distributed_kd.corpus.bytes_of import BUFFER_BYTES, DamagedError, open_bytes
from distributed_kd.corpus.cut import Piece
from distributed_kd.corpus.source import SourceFile
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import open_filesystem

_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Column:
    key: str  # of the recipe's corpus, which names it
    name: str


def rows(piece: Piece, columns: list[Column]) -> Iterator[tuple[str, list[Any]]]:
    """(file and line or row, its values) of each row, in order. Raises `RequestError` for what is not there.

    What a line of JSON has in a column is as it stands there; what an Arrow column has is of its kind, or None.
    """
    if piece.file.format == "text":
        raise RequestError(
            f"{piece.file.uri} is a text without columns, and corpus.{columns[0].key} is asked for; give JSON lines, "
            "Parquet or a saved dataset"
        )
    read = {"jsonl": _json_rows, "parquet": _parquet_rows, "datasets": _arrow_rows}[piece.file.format]
    yield from read(piece, columns)


def _json_rows(piece: Piece, columns: list[Column]) -> Iterator[tuple[str, list[Any]]]:
    uri, number = piece.file.uri, piece.before
    left = piece.end - piece.begin
    try:
        with open_bytes(piece.file, piece.begin) as stream:
            for line in stream:
                number += 1
                if line.strip():
                    place = f"{uri} line {number}"
                    yield place, _json_values(line, columns, place)
                left -= len(line)
                if left <= 0 and piece.file.compression is None:
                    return
    except DamagedError as error:
        raise damaged(f"{uri} after line {number}", piece.file, error) from error


def damaged(where: str, file: SourceFile, error: DamagedError) -> RequestError:
    return RequestError(f"{where}: what follows is no {file.compression}, or not all of it ({error}); copy it again")


def _json_values(line: bytes, columns: list[Column], place: str) -> list[Any]:
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
    for column in columns:
        if not isinstance(row, dict) or column.name not in row:
            keys = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
            raise RequestError(f"{place} has no column {column.name!r} (it has: {keys}); set corpus.{column.key}")
    return [row[column.name] for column in columns]


def _parquet_rows(piece: Piece, columns: list[Column]) -> Iterator[tuple[str, list[Any]]]:
    import pyarrow.parquet as pq

    uri, row = piece.file.uri, piece.before
    fs, path = open_filesystem(uri)
    with fs.open(path, "rb") as stream:
        try:
            # A buffer: without one a whole column of a row group is held.
            table = pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False)
            _check_columns(table.schema_arrow, columns, uri)
            groups = list(range(piece.begin, piece.end))
            for batch in table.iter_batches(
                _BATCH_ROWS, groups, columns=[column.name for column in columns], use_threads=False
            ):
                yield from _values(batch, columns, uri, row)
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise RequestError(f"{uri} is damaged after row {row}: {' '.join(str(error).split())}") from error


def _arrow_rows(piece: Piece, columns: list[Column]) -> Iterator[tuple[str, list[Any]]]:
    """The record batches of an Arrow stream between two bytes of it, by the schema at its beginning."""
    uri, row = piece.file.uri, piece.before
    fs, path = open_filesystem(uri)
    with fs.open(path, "rb") as raw:
        try:
            stream = pa.PythonFile(raw, "r")
            schema = pa.ipc.read_schema(pa.ipc.read_message(stream))
            _check_columns(schema, columns, uri)
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
                yield from _values(batch, columns, uri, row)
                row += batch.num_rows
        except (pa.ArrowException, OSError, EOFError) as error:
            raise RequestError(
                f"{uri} is no whole Arrow stream after row {row}: {' '.join(str(error).split())}; save it again"
            ) from error


def _check_columns(schema: Any, columns: list[Column], uri: str) -> None:
    """Raises `RequestError` unless each is there and of its kind."""
    for key, name in ((column.key, column.name) for column in columns):
        if name not in schema.names:
            raise RequestError(f"{uri} has no column {name!r} (it has: {', '.join(schema.names)}); set corpus.{key}")
        wanted, fits = _KINDS[key]
        if not fits(schema.field(name).type):
            raise RequestError(f"{uri}: column {name!r} is {schema.field(name).type}, not {wanted}")


def _is_text(kind: Any) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_list(kind: Any, of: Callable[[Any], bool]) -> bool:
    is_one = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_one and of(kind.value_type)


def _is_message(kind: Any) -> bool:
    return types.is_struct(kind) and all(
        kind.get_field_index(part) >= 0 and _is_text(kind.field(part).type) for part in ("role", "content")
    )


def _is_number(kind: Any) -> bool:
    return types.is_integer(kind) or types.is_floating(kind)


def _is_integer(kind: Any) -> bool:
    return types.is_integer(kind)


# By the recipe's key: what a column of an Arrow or Parquet file must be.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text_column": ("a text", _is_text),
    "messages_column": ("a list of messages of role and content", lambda kind: _is_list(kind, _is_message)),
    "features_column": (
        "a list of numbers, or of lists of them",
        lambda kind: _is_list(kind, lambda inner: _is_number(inner) or _is_list(inner, _is_number)),
    ),
    "label_column": (
        "a class number, or a list of them",
        lambda kind: _is_integer(kind) or _is_list(kind, _is_integer),
    ),
    "document_column": ("a text or a whole number", lambda kind: _is_text(kind) or _is_integer(kind)),
    "view_column": ("a whole number", lambda kind: _is_integer(kind)),
}
_NO_VALUE = {"messages_column": [], "text_column": ""}  # what a null stands for; None where not said


def _values(batch: Any, columns: list[Column], uri: str, row: int) -> Iterator[tuple[str, list[Any]]]:
    values = [batch.column(batch.schema.get_field_index(column.name)).to_pylist() for column in columns]
    nothing: list[Any] = [_NO_VALUE.get(column.key) for column in columns]
    for number, own in enumerate(zip(*values, strict=True), start=row + 1):
        yield f"{uri} row {number}", [empty if one is None else one for one, empty in zip(own, nothing, strict=True)]
