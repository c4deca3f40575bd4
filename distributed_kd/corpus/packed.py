"""Packed files: a block's sequences by split, on their way to shards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distributed_kd.corpus.packing import SPLITS
from distributed_kd.corpus.sequences import Sequence, rows_to_sequences, sequences_to_columns
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import table_bytes

_SPLIT = "split"
_LEFT_OUT = b"left_out"


@dataclass(frozen=True)
class Packed:
    """What a packed file holds: sequences by split."""

    name: str
    sequences: dict[str, int]
    left_out: int = 0  # sequences without a token that could be masked


def put_packed(store: Store, name: str, sequences: dict[str, list[Sequence]], left_out: int = 0) -> Packed:
    """Writes one, its rows ordered by split."""
    flat = [sequence for split in SPLITS for sequence in sequences[split]]
    column = pa.array([split for split in SPLITS for _ in sequences[split]], pa.string())
    table = pa.table(sequences_to_columns(flat)).append_column(_SPLIT, column)
    table = table.replace_schema_metadata({_LEFT_OUT: str(left_out)})
    store.put(name, table_bytes(table))
    return _summary(name, table)


def find_packed(store: Store, name: str) -> Packed | None:
    """One that is there already."""
    return _summary(name, _table(store, name)) if store.exists(name) else None


def read_packed(store: Store, name: str, split: str, begin: int, end: int, isolated: bool) -> list[Sequence]:
    """Sequences [begin, end) of a split."""
    table = _table(store, name)
    rows = np.flatnonzero(np.array(table.column(_SPLIT).to_pylist(), dtype=object) == split)[begin:end]
    return rows_to_sequences(table.take(pa.array(rows)), isolated)


def _table(store: Store, name: str) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(store.read(name))).read_all()


def _summary(name: str, table: pa.Table) -> Packed:
    rows = Counter(table.column(_SPLIT).to_pylist())
    return Packed(name, {split: rows[split] for split in SPLITS}, int(table.schema.metadata[_LEFT_OUT]))
