"""The teacher's hidden states at scored positions, where a cache keeps them: a column beside the codec's.

They are kept in the dtype that the recipe says, and not by a codec: zstd saves little of them, and a cosine asks for no
more than half precision has. numpy and Arrow have no bfloat16: its numbers are carried as their 16 bits, uint16.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from distributed_kd.cache.codecs.columns import from_column, to_column
from distributed_kd.recipe.targets import HiddenDtype

COLUMN = "hidden"
_STORED: dict[HiddenDtype, pa.DataType] = {"float16": pa.float16(), "bfloat16": pa.uint16(), "float32": pa.float32()}
_BFLOAT16_EXPONENT = 0x7F80


class HiddenStates(BaseModel):
    """What a manifest says of them: `layer` as `targets.hidden.layer`, `width` numbers of `dtype` a position."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: int
    dtype: HiddenDtype
    width: Annotated[int, Field(ge=1, le=1 << 20)]

    @property
    def bytes_per_position(self) -> int:
        return self.width * _STORED[self.dtype].bit_width // 8


def encode(hidden: np.ndarray, lengths: np.ndarray) -> pa.Array:
    """[N, D] float16, float32 or uint16 to lists of fixed-width lists, one row a sequence of `lengths` positions."""
    return to_column(hidden, lengths, pa.from_numpy_dtype(hidden.dtype))


def decode(columns: dict[str, pa.Array], lengths: np.ndarray) -> np.ndarray:
    """The inverse. Raises `ValueError` for a column that is no such one."""
    stored = _numbers_of(columns[COLUMN].type)
    if stored not in _STORED.values():
        raise ValueError(f"column {COLUMN} is {columns[COLUMN].type}, not lists of fixed-width lists of floats")
    return from_column(columns, COLUMN, lengths, stored)


def is_said(table: pa.Table, said: HiddenStates | None) -> bool:
    """Whether a shard's table keeps what its manifest says, or neither has any."""
    if said is None or COLUMN not in table.column_names:
        return said is None and COLUMN not in table.column_names
    return bool(table.schema.field(COLUMN).type == pa.list_(pa.list_(_STORED[said.dtype], said.width)))


def are_finite(hidden: np.ndarray) -> np.ndarray:
    """[N, D] bool."""
    if hidden.dtype == np.uint16:
        return np.asarray((hidden & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT)
    return np.isfinite(hidden)


def _numbers_of(kind: pa.DataType) -> pa.DataType | None:
    """Of lists of lists, what is in these."""
    for _ in range(2):
        if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)):
            return None
        kind = kind.value_type
    return kind
