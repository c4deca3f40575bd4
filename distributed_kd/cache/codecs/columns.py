"""What a codec hands to the shard writer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distributed_kd.cache.soft_targets import SoftTargets


@dataclass(frozen=True)
class Encoded:
    """Columns with one row a sequence, and which part of the bytes each belongs to.

    `parts` maps a column name to `levels`, `ids` or `tail`, for the accounting that `dkd inspect` prints.
    """

    columns: dict[str, pa.Array]
    parts: dict[str, str]


def to_column(matrix: np.ndarray, lengths: np.ndarray, kind: pa.DataType) -> pa.Array:
    """[N, W] to lists of fixed-width lists, one row a sequence of `lengths` positions."""
    ends = pa.array(np.cumsum([0, *lengths]), pa.int32())
    return pa.ListArray.from_arrays(
        ends, pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel(), kind), matrix.shape[1])
    )


def from_column(columns: dict[str, pa.Array], name: str, lengths: np.ndarray, stored: pa.DataType) -> np.ndarray:
    """The inverse: [N, W] numbers as they are stored. Raises `ValueError` for what is no such column."""
    if name not in columns:
        raise ValueError(f"there is no column {name}")
    column = columns[name]
    kind = column.type.value_type if pa.types.is_list(column.type) else pa.null()
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != stored or kind.list_size < 1:
        raise ValueError(f"column {name} is {column.type}, not lists of fixed-width lists of {stored}")
    if not np.array_equal(column.value_lengths().to_numpy(), lengths):
        raise ValueError(f"column {name} does not hold what its sequences score")
    positions = column.flatten()
    flat = positions.flatten()
    if positions.null_count or flat.null_count:
        raise ValueError(f"column {name} has nulls")
    return flat.to_numpy(zero_copy_only=False).reshape(len(positions), kind.list_size)


def refuse_log_p(targets: SoftTargets) -> None:
    """For a codec that keeps one set of logits. Raises `ValueError` for targets that have one for each temperature."""
    if targets.log_p is not None:
        raise ValueError("log-probabilities that are not those of one set of logits are not kept; plain-1 keeps them")
