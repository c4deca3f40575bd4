"""Documents out of files: .txt (a file is a document), .jsonl and .parquet (a row is a document).

Files may lie locally, in a bucket or in an installed package. Their order is that of their sorted names, and a
block is a run of whole files, so what a task reads depends on the source alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from distributed_kd.errors import RequestError
from distributed_kd.models.locate import PACKAGE_PREFIX, resolve_package
from distributed_kd.recipe import Corpus
from distributed_kd.store.digest import canonical_json, sha256
from distributed_kd.store.filesystem import open_filesystem

_FORMAT_BY_ENDING = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class SourceFile:
    uri: str
    format: str
    bytes: int


def list_files(corpus: Corpus) -> list[SourceFile]:
    """The source's files in reading order. Raises `RequestError` when there is nothing to read."""
    files: list[SourceFile] = []
    for source in corpus.sources:
        uri = str(resolve_package(source)) if source.startswith(PACKAGE_PREFIX) else source
        fs, path = open_filesystem(uri)
        found = fs.find(path, detail=True)  # a file finds itself
        for name, info in sorted(found.items()):
            format_name = _format_of(name, corpus)
            if format_name:
                files.append(SourceFile(fs.unstrip_protocol(name), format_name, int(info["size"])))
        if not found:
            raise RequestError(f"corpus.source {source}: nothing is there; name a file or folder that exists")
    if not any(file.bytes for file in files):
        endings = ", ".join(_FORMAT_BY_ENDING)
        raise RequestError(f"corpus.source {', '.join(corpus.sources)}: no text in it (looked for {endings})")
    return files


def blocks_of(files: list[SourceFile], block_bytes: int) -> list[list[SourceFile]]:
    """Runs of whole files of about `block_bytes` each: the unit of a prepare task."""
    blocks: list[list[SourceFile]] = []
    filled = block_bytes
    for file in files:
        if filled >= block_bytes:
            blocks.append([])
            filled = 0
        blocks[-1].append(file)
        filled += file.bytes
    return blocks


def digest_of(files: list[SourceFile]) -> dict[str, Any]:
    """What the source holds: number of files, bytes, and one digest over the files' own, in order."""

    def one(file: SourceFile) -> str:
        fs, path = open_filesystem(file.uri)
        return sha256(fs.cat_file(path))

    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(one, files))
    return {
        "files": len(files),
        "bytes": sum(file.bytes for file in files),
        "sha256": sha256(canonical_json(digests)),
    }


def documents(file: SourceFile, text_column: str) -> Iterator[str]:
    """The texts of a file, in order. Raises `RequestError` naming the file and the place of what is wrong."""
    fs, path = open_filesystem(file.uri)
    if file.format == "text":
        yield _decode(fs.cat_file(path), file.uri, 0)
    elif file.format == "jsonl":
        offset = 0
        with fs.open(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _json_text(_decode(line, file.uri, offset), text_column, f"{file.uri} line {number}")
                offset += len(line)
    else:
        yield from _parquet_texts(fs, path, text_column, file.uri)


def _format_of(name: str, corpus: Corpus) -> str | None:
    by_ending = next((kind for ending, kind in _FORMAT_BY_ENDING.items() if name.endswith(ending)), None)
    if corpus.format == "auto":
        return by_ending
    return corpus.format if by_ending in (None, corpus.format) else None


def _decode(data: bytes, uri: str, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{uri} is not UTF-8: byte {offset + error.start} cannot be decoded; convert the file first"
        ) from error


def _json_text(line: str, text_column: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict) or text_column not in row:
        keys = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
        raise RequestError(f"{where} has no column {text_column!r} (it has: {keys}); set corpus.text_column")
    if not isinstance(row[text_column], str):
        raise RequestError(f"{where}: column {text_column!r} is {type(row[text_column]).__name__}, not a text")
    return row[text_column]


def _parquet_texts(fs: Any, path: str, text_column: str, uri: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with fs.open(path, "rb") as stream:
        try:
            table = pq.ParquetFile(stream)
        except pa.ArrowInvalid as error:
            raise RequestError(f"{uri} is not Parquet: {error}") from error
        if text_column not in table.schema_arrow.names:
            keys = ", ".join(table.schema_arrow.names)
            raise RequestError(f"{uri} has no column {text_column!r} (it has: {keys}); set corpus.text_column")
        kind = table.schema_arrow.field(text_column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise RequestError(f"{uri}: column {text_column!r} is {kind}, not a text")
        for batch in table.iter_batches(batch_size=1024, columns=[text_column]):
            yield from (text or "" for text in batch.column(0).to_pylist())
