"""What a codec hands to the shard writer."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Encoded:
    """Columns with one row a sequence, and which part of the bytes each belongs to.

    `parts` maps a column name to `levels`, `ids` or `tail`, for the accounting that `dkd inspect` prints.
    """

    columns: dict[str, pa.Array]
    parts: dict[str, str]
