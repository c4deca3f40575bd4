"""Documents out of a piece of a source: a .txt file is one, and so is a line or a row of anything else.

A piece is read as a stream, a line or a batch of rows at a time, so that a file may be larger than memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distributed_kd.corpus.bytes_of import BUFFER_BYTES, DamagedError, open_bytes, stretches
from distributed_kd.corpus.columns import Column, damaged, rows
from distributed_kd.corpus.conversation import Messages, messages_of
from distributed_kd.corpus.cut import Piece
from distributed_kd.corpus.packing import document_id, document_of, id_of_digest, named_document
from distributed_kd.corpus.source import SourceFile
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Corpus
from distributed_kd.store.digest import canonical_json


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
    columns = [_column(corpus)]
    if corpus.document_column is not None:
        columns.append(Column("document_column", corpus.document_column))
    for place, (value, *named) in rows(piece, columns):
        yield _document(place, value, named, corpus)


def _document(place: str, value: Any, named: list[Any], corpus: Corpus) -> Document:
    content: str | Messages
    if corpus.task == "chat":
        content = messages_of(value, f"{place}: column {corpus.messages_column!r}")
    elif isinstance(value, str):
        content = value
    else:
        raise RequestError(f"{place}: column {corpus.text_column!r} is {type(value).__name__}, not a text")
    try:
        text = content if isinstance(content, str) else canonical_json(content).decode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{place} holds half a surrogate pair, which is no text; repair that row") from error
    own = document_of(text, place)  # of a named one too: it must be a text
    return Document(named_document(named[0], place) if named else own, content, place)


def _column(corpus: Corpus) -> Column:
    if corpus.task == "chat":
        return Column("messages_column", corpus.messages_column)
    return Column("text_column", corpus.text_column)


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
        raise damaged(f"{file.uri} after byte {place} of its text", file, error) from error


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
