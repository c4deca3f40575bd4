"""A cache as plain Parquet: one row a scored position, for DuckDB, Polars, pandas and datasets.

| column | type | what |
|---|---|---|
| `sequence_id` | int64 | |
| `position` | int32 | place in the sequence, from 0; it predicts the id after it |
| `document` | int64 | |
| `input_id`, `label` | int32 | the id at the position, and the one that follows |
| `ids` | list of int32 | kept ids, the most probable first; shorter where a position keeps fewer |
| `log_probabilities_T1` | list of float32 | of those ids, natural logarithm; a column for each temperature |
| `log_tail_T1` | float32 | of everything else together; -inf where nothing is left |

Hidden states, where a cache keeps them, are left out. Parquet's own metadata names the cache under `dkd.fingerprint`,
`dkd.teacher` and `dkd.codec`. One row group a shard.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distributed_kd import console
from distributed_kd.cache.manifest import CacheManifest
from distributed_kd.cache.reader import LogitCache
from distributed_kd.cache.reader import open as open_cache
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import NO_ID, SoftTargets
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import Store
from distributed_kd.store.whole import whole_file

FORMATS = ("parquet",)


@dataclass(frozen=True)
class Exported:
    """`rows` positions in `bytes` of `file`."""

    file: str
    rows: int
    bytes: int

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def export(uri: str | Store, out: str, kind: str = "parquet") -> Exported:
    """Writes the local file `out`, whole or not at all, a shard at a time. Raises `RequestError`, writing none."""
    if kind not in FORMATS:
        raise RequestError(f"--format {kind} is not one of {', '.join(FORMATS)}")
    path = Path(out)
    if "://" in out or path.is_dir() or not path.absolute().parent.is_dir():
        raise RequestError(f"--out {out} is not the path of a file in a folder that is there")
    cache = open_cache(uri)
    with whole_file(str(path.absolute())) as file:
        rows = _write(cache, file)
    return Exported(str(path), rows, path.stat().st_size)


def schema_of(manifest: CacheManifest) -> pa.Schema:
    by_temperature = []
    for temperature in manifest.temperatures:
        by_temperature += [
            (f"log_probabilities_T{temperature:g}", pa.list_(pa.float32())),
            (f"log_tail_T{temperature:g}", pa.float32()),
        ]
    return pa.schema(
        [
            ("sequence_id", pa.int64()), ("position", pa.int32()), ("document", pa.int64()), ("input_id", pa.int32()),
            ("label", pa.int32()), ("ids", pa.list_(pa.int32())), *by_temperature,
        ],
        metadata={
            "dkd.fingerprint": manifest.fingerprint, "dkd.teacher": manifest.teacher, "dkd.codec": manifest.codec,
        },
    )  # fmt: skip


def table_of_rows(rows: list[Row], manifest: CacheManifest) -> pa.Table:
    """A shard's rows as a table of N positions."""
    schema = schema_of(manifest)
    if not rows:
        return schema.empty_table()
    sequences = [row.sequence for row in rows]
    targets = SoftTargets.concatenate([row.targets for row in rows])
    kept = targets.ids != NO_ID
    offsets = pa.array(np.cumsum([0, *kept.sum(axis=1)]), pa.int32())

    def lists(matrix: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, pa.array(matrix[kept], kind))

    columns: list[Any] = [
        np.repeat([sequence.sequence_id for sequence in sequences], [sequence.positions for sequence in sequences]),
        np.concatenate([np.flatnonzero(sequence.loss_mask) for sequence in sequences]),
        np.concatenate([sequence.position_documents for sequence in sequences]),
        np.concatenate([sequence.input_ids[sequence.loss_mask] for sequence in sequences]),
        np.concatenate([sequence.labels[sequence.loss_mask] for sequence in sequences]),
        lists(targets.ids, pa.int32()),
    ]
    for temperature in manifest.temperatures:
        log_p, log_tail = targets.log_probabilities(temperature)
        columns += [lists(log_p, pa.float32()), log_tail]
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)


def _write(cache: LogitCache, file: Any) -> int:
    total = int(cache.entries.positions.sum())
    rows = 0
    with (
        pq.ParquetWriter(file, schema_of(cache.manifest), compression="zstd") as writer,
        console.progress("export", total) as advance,
    ):
        pace = console.Pace("positions")
        for place in range(len(cache.entries)):
            table = table_of_rows(cache.read_shard(place), cache.manifest)
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            rows += table.num_rows
            advance(rows, pace(rows))
    return rows
