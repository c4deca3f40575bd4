"""Which files a corpus is: by the ending of their names, and by `state.json` in a folder that `datasets` saved.

Files may lie locally, in a bucket or in an installed package. Their order is that of their sorted names; those of a
saved dataset come in the order that its `state.json` lists.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from typing import Any

from distributed_kd.corpus import builtin
from distributed_kd.errors import RequestError
from distributed_kd.models.locate import PACKAGE_PREFIX, resolve_package
from distributed_kd.recipe import Corpus
from distributed_kd.store.filesystem import open_filesystem

_FORMAT_BY_ENDING = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
_COMPRESSION_BY_ENDING = {".gz": "gzip", ".zst": "zstd"}
# What `datasets.Dataset.save_to_disk` writes beside the Arrow files.
_STATE, _INFO = "state.json", "dataset_info.json"


@dataclass(frozen=True)
class SourceFile:
    uri: str
    format: str  # text, jsonl, parquet, or datasets: an Arrow file that a saved dataset lists
    bytes: int
    compression: str | None = None  # gzip or zstd


def list_files(corpus: Corpus) -> list[SourceFile]:
    """The source's files in reading order. Raises `RequestError` when there is nothing to read."""
    files: list[SourceFile] = []
    for source in corpus.sources:
        uri = builtin.resolve(source)
        uri = str(resolve_package(uri)) if uri.startswith(PACKAGE_PREFIX) else uri
        fs, path = open_filesystem(uri)
        found = fs.find(path, detail=True)  # a file finds itself
        if not found:
            raise RequestError(f"corpus.source {source}: nothing is there; name a file or folder that exists")
        saved = _saved_datasets(set(found)) if corpus.format in ("auto", "datasets") else set()
        for name, info in sorted(found.items()):
            folder = posixpath.dirname(name)
            if folder in saved:
                if posixpath.basename(name) == _INFO:  # once a folder
                    files += _data_files(fs, folder, found)
                continue
            kind = _kind_of(name, corpus)
            if kind:
                files.append(SourceFile(fs.unstrip_protocol(name), kind[0], int(info["size"]), kind[1]))
    if not any(file.bytes for file in files):
        endings = ", ".join(_FORMAT_BY_ENDING)
        raise RequestError(
            f"corpus.source {', '.join(corpus.sources)}: no text in it (looked for {endings}, also with .gz or .zst, "
            "and for folders that datasets saved)"
        )
    return files


def make_builtin(corpus: Corpus) -> None:
    """Those of its sources that this package makes itself, where this host has not got them: tasks read their files."""
    for source in corpus.sources:
        builtin.resolve(source)


def _kind_of(name: str, corpus: Corpus) -> tuple[str, str | None] | None:
    """(format, compression) to read a file by; None: it is not read."""
    ending = posixpath.splitext(name)[1]
    compression = _COMPRESSION_BY_ENDING.get(ending)
    inner = posixpath.splitext(name.removesuffix(ending))[1] if compression else ending
    by_ending = _FORMAT_BY_ENDING.get(inner)
    if inner == ".arrow" or corpus.format == "datasets":
        return None
    if corpus.format != "auto" and by_ending not in (None, corpus.format):
        return None
    kind = by_ending if corpus.format == "auto" else corpus.format
    if kind == "parquet" and compression:
        raise RequestError(f"{name}: Parquet compresses what it holds itself, so this is not read; decompress the file")
    if kind == "text" and corpus.task == "chat":
        raise RequestError(
            f"{name}: a text is no conversation, and corpus.task is chat; name the .jsonl, .parquet or saved "
            "dataset that holds them"
        )
    return (kind, compression) if kind else None


def _saved_datasets(names: set[str]) -> set[str]:
    folders = {posixpath.dirname(name) for name in names if posixpath.basename(name) == _STATE}
    return {folder for folder in folders if f"{folder}/{_INFO}" in names}


def _data_files(fs: Any, folder: str, found: dict[str, Any]) -> list[SourceFile]:
    """The Arrow files that a saved dataset's state lists. Raises `RequestError` when one of them is not there."""
    where = fs.unstrip_protocol(folder)
    try:
        state = json.loads(fs.cat_file(f"{folder}/{_STATE}"))
        listed = [str(entry["filename"]) for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{where}/{_STATE} is not that of a saved dataset; save the dataset again") from error
    if state.get("_indices_data_files"):
        raise RequestError(f"{where} was saved with an index beside its rows; flatten_indices() and save it again")
    for name in listed:
        if f"{folder}/{name}" not in found:
            raise RequestError(f"{where}: {name}, which {_STATE} lists, is not there; copy the folder whole")
    return [SourceFile(f"{where}/{name}", "datasets", int(found[f"{folder}/{name}"]["size"])) for name in listed]
