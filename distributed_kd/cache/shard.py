"""One shard of the cache as bytes: the sequences' own columns, and their positions' targets through a codec.

A row is a sequence; each codec column is a list over the sequence's scored positions, so positions without loss
cost nothing. Schema metadata names the codec, the cache's fingerprint and the shard number.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from distributed_kd.cache import codecs
from distributed_kd.cache.manifest import PARTS
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.corpus.sequences import Sequence, rows_to_sequences, sequences_to_columns
from distributed_kd.errors import RequestError
from distributed_kd.store.index import table_bytes


@dataclass(frozen=True)
class Row:
    """A sequence and the soft targets of its scored positions, in order."""

    sequence: Sequence
    targets: SoftTargets


def encode(rows: list[Row], codec_name: str, fingerprint: str, shard: int) -> tuple[bytes, dict[str, int]]:
    """The shard file's bytes, and how many of them each part takes (`PARTS`)."""
    encoded = codecs.find(codec_name).encode(SoftTargets.concatenate([row.targets for row in rows]))
    ends = np.cumsum([0] + [len(row.targets) for row in rows]).astype(np.int32)
    columns = sequences_to_columns([row.sequence for row in rows])
    columns |= {name: pa.ListArray.from_arrays(pa.array(ends), column) for name, column in encoded.columns.items()}
    metadata = {"codec": codec_name, "fingerprint": fingerprint, "shard": str(shard)}
    data = table_bytes(pa.table(columns, metadata=metadata))

    parts = dict.fromkeys(PARTS, 0)
    for name in columns:
        part = encoded.parts.get(name, "input_ids" if name == "input_ids" else "container")
        parts[part] += _compressed_bytes(columns[name])
    parts["container"] += len(data) - sum(parts.values())
    return data, parts


def decode(table: pa.Table, shard: int, fingerprint: str, isolated: bool, temperatures: tuple[float, ...]) -> list[Row]:
    """The rows of a shard. Raises `RequestError` when it belongs to another cache or stands in another's place."""
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if metadata.get("fingerprint") != fingerprint or metadata.get("shard") != str(shard):
        raise RequestError(
            f"shard {shard} says it is shard {metadata.get('shard')} of cache {metadata.get('fingerprint', '')[:12]}, "
            f"not of {fingerprint[:12]}; repair the cache"
        )
    sequences = rows_to_sequences(table, isolated)
    codec = codecs.find(metadata["codec"])
    own = set(sequences_to_columns([]))
    lists = {name: table.column(name).combine_chunks() for name in table.column_names if name not in own}
    targets = codec.decode({name: column.flatten() for name, column in lists.items()}, temperatures)
    ends = np.cumsum([0] + [sequence.positions for sequence in sequences])
    if len(targets) != ends[-1]:
        raise RequestError(f"shard {shard} holds targets of {len(targets)} positions for {ends[-1]} scored ones")
    return [Row(sequence, targets[begin:end]) for sequence, (begin, end) in zip(sequences, pairwise(ends), strict=True)]


def _compressed_bytes(column: pa.Array) -> int:
    """What Arrow's zstd makes of the column's buffers, its 8-byte length before each included."""
    zstd = pa.Codec("zstd", compression_level=9)
    return sum(len(zstd.compress(buffer)) + 8 for buffer in column.buffers() if buffer is not None and buffer.size)
