"""plain-1: ids as int32, logits as float16, tail odds as float32, left to Arrow's zstd.

Simple, lossless in the ids, within 2^-11 of each relative logit; about 160 bytes a position at K = 64. Anything
that opens Arrow files can read it without this package.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from distributed_kd.cache.codecs.columns import Encoded
from distributed_kd.cache.soft_targets import SoftTargets

NAME = "plain-1"


def encode(targets: SoftTargets) -> Encoded:
    """[N, K] targets to three fixed-width list columns of N rows."""
    width = targets.ids.shape[1]
    logits = targets.logits.astype(np.float16)
    columns = {
        "ids": pa.FixedSizeListArray.from_arrays(pa.array(targets.ids.ravel(), pa.int32()), width),
        "logits": pa.FixedSizeListArray.from_arrays(pa.array(logits.ravel(), pa.float16()), width),
        "tail_odds": pa.FixedSizeListArray.from_arrays(
            pa.array(targets.tail_odds.ravel(), pa.float32()), targets.tail_odds.shape[1]
        ),
    }
    return Encoded(columns, {"ids": "ids", "logits": "levels", "tail_odds": "tail"})


def decode(columns: dict[str, pa.Array], temperatures: tuple[float, ...]) -> SoftTargets:
    def matrix(name: str, dtype: type) -> np.ndarray:
        column = columns[name]
        values = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), column.type.list_size).astype(dtype)

    return SoftTargets(
        matrix("ids", np.int32), matrix("logits", np.float32), matrix("tail_odds", np.float32), temperatures
    )
