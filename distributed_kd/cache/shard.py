"""One shard of the cache as bytes: the sequences' own columns, and their positions' targets through a codec.

A row is a sequence; a codec's columns hold its scored positions only, so positions without loss cost nothing; hidden
states, where a cache keeps them, are a column of their own. Schema
metadata names the codec, the digest of its code tables, the cache's fingerprint and the shard number.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa

from distributed_kd.cache import codecs, hidden
from distributed_kd.cache.codecs.columns import Encoded
from distributed_kd.cache.manifest import PARTS
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.corpus.sequences import COLUMNS, Sequence, one_chunk, rows_to_sequences, sequences_to_columns
from distributed_kd.errors import RequestError
from distributed_kd.store.digest import sha256
from distributed_kd.store.index import table_bytes


@dataclass(frozen=True)
class Row:
    """A sequence and the soft targets of its scored positions, in order."""

    sequence: Sequence
    targets: SoftTargets


def encode(
    rows: list[Row], codec_name: str, fingerprint: str, shard: int, tables: bytes | None = None, threads: int = 1
) -> tuple[bytes, dict[str, int]]:
    """The shard file's bytes, the same for any number of threads, and how many of them each part takes (`PARTS`,
    and `hidden` where targets have hidden states).

    tables: the bytes of the cache's code tables, for a codec that has some; the shard names their digest.
    """
    sequences = [row.sequence for row in rows]
    try:
        encoded = _encode(rows, codec_name, tables, threads)
    except ValueError as error:
        raise RequestError(f"shard {shard} cannot be encoded with {codec_name}: {error}") from error
    columns = sequences_to_columns(sequences) | encoded.columns
    metadata = {"codec": codec_name, "fingerprint": fingerprint, "shard": str(shard)}
    if tables is not None:
        metadata["tables"] = sha256(tables)
    data = table_bytes(pa.table(columns, metadata=metadata))

    parts = dict.fromkeys(PARTS, 0) | ({hidden.COLUMN: 0} if hidden.COLUMN in columns else {})
    for name in columns:
        part = encoded.parts.get(name, "input_ids" if name == "input_ids" else "container")
        parts[part] += _compressed_bytes(columns[name])
    parts["container"] += len(data) - sum(parts.values())
    return data, parts


def _encode(rows: list[Row], codec_name: str, tables: bytes | None, threads: int) -> Encoded:
    """A codec encodes each sequence by itself, and without Python's lock mostly: so parts of a shard at once."""

    def part(own: list[Row]) -> Encoded:
        lengths, tokens = _scored([row.sequence for row in own])
        targets = SoftTargets.concatenate([row.targets for row in own])
        encoded = codecs.find(codec_name).encode(targets, lengths, tokens, tables)
        if targets.hidden is None:
            return encoded
        columns = encoded.columns | {hidden.COLUMN: hidden.encode(targets.hidden, lengths)}
        return Encoded(columns, encoded.parts | {hidden.COLUMN: hidden.COLUMN})

    size = max(1, -(-len(rows) // threads))
    parts = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
    if len(parts) < 2:
        return part(rows)
    with ThreadPoolExecutor(len(parts)) as pool:
        done = list(pool.map(part, parts))
    columns = {name: pa.concat_arrays([one.columns[name] for one in done]) for name in done[0].columns}
    return Encoded(columns, done[0].parts)


def build_tables(rows: list[Row], codec_name: str, vocabulary: int, draws: int) -> bytes:
    """Code tables of a codec that has some, made from these rows. draws: of `sample` targets, else 0.

    Raises `ValueError` for targets that the codec does not keep.
    """
    build = codecs.find(codec_name).build_tables
    assert build is not None  # asked for only then
    _, tokens = _scored([row.sequence for row in rows])
    return build(SoftTargets.concatenate([row.targets for row in rows]), tokens, vocabulary, draws)


def decode(
    table: pa.Table,
    shard: int,
    fingerprint: str,
    isolated: bool,
    temperatures: tuple[float, ...],
    tables: bytes | None = None,
) -> list[Row]:
    """The rows of a shard. Raises `RequestError` when it belongs to another cache or stands in another's place."""
    metadata = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in _metadata(table)}
    if metadata.get("fingerprint") != fingerprint or metadata.get("shard") != str(shard):
        raise RequestError(
            f"shard {shard} says it is shard {metadata.get('shard', '')[:20]} of cache "
            f"{metadata.get('fingerprint', '')[:12]}, "
            f"not of {fingerprint[:12]}; repair the cache"
        )
    digest = _digest(tables) if tables is not None else None
    if metadata.get("tables") != digest:
        raise RequestError(
            f"shard {shard} was written with code tables {str(metadata.get('tables'))[:12]}, "
            f"the cache has {str(digest)[:12]}; repair the cache"
        )
    codec = codecs.find(metadata.get("codec", ""))
    try:
        sequences = rows_to_sequences(table, isolated)
        lengths, tokens = _scored(sequences)
        columns = {name: one_chunk(table, name) for name in table.column_names if name not in COLUMNS}
        targets = codec.decode(columns, lengths, tokens, temperatures, tables)
        if hidden.COLUMN in columns:
            targets = replace(targets, hidden=hidden.decode(columns, lengths))
    except (ValueError, MemoryError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"shard {shard} is damaged: {reason}; repair the cache") from error
    ends = np.cumsum([0, *lengths])
    if len(targets) != ends[-1]:
        raise RequestError(f"shard {shard} holds targets of {len(targets)} positions for {ends[-1]} scored ones")
    return [Row(sequence, targets[begin:end]) for sequence, (begin, end) in zip(sequences, pairwise(ends), strict=True)]


def codec_of(table: pa.Table) -> str:
    """The codec that a shard says it was written with; "" where it says none."""
    return dict(_metadata(table)).get(b"codec", b"").decode(errors="replace")


def _metadata(table: pa.Table) -> list[tuple[bytes, bytes]]:
    return list((table.schema.metadata or {}).items())


@lru_cache(maxsize=4)
def _digest(tables: bytes) -> str:
    return sha256(tables)


def _scored(sequences: list[Sequence]) -> tuple[np.ndarray, np.ndarray]:
    """(scored positions by sequence, the input id at each of them [N] int32)."""
    lengths = np.array([sequence.positions for sequence in sequences], np.int64)
    tokens = [sequence.input_ids[sequence.loss_mask] for sequence in sequences]
    return lengths, np.concatenate([np.empty(0, np.int32), *tokens]).astype(np.int32)


def _compressed_bytes(column: pa.Array) -> int:
    """What Arrow's zstd makes of the column's buffers, its 8-byte length before each included."""
    zstd = pa.Codec("zstd", compression_level=9)
    return sum(len(zstd.compress(buffer)) + 8 for buffer in column.buffers() if buffer is not None and buffer.size)
