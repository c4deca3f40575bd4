"""plain-1: ids as int32, logits as float16, tail odds as float32, left to Arrow's zstd.

Simple, lossless in the ids, within 2^-11 of each relative logit; about 200 bytes a position at K = 64. Anything
that opens Arrow files can read it without this package. Where log-probabilities of each temperature are given, they
are a column of float32 more.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from distributed_kd.cache.codecs.columns import Encoded, from_column, to_column
from distributed_kd.cache.soft_targets import SoftTargets

NAME = "plain-1"


def encode(targets: SoftTargets, lengths: np.ndarray, tokens: np.ndarray, tables: bytes | None = None) -> Encoded:
    """[N, K] targets to three columns of lists of fixed-width lists, one row a sequence of `lengths` positions."""

    def column(matrix: np.ndarray, kind: pa.DataType) -> pa.Array:
        return to_column(matrix, lengths, kind)

    columns = {
        "ids": column(targets.ids, pa.int32()),
        "logits": column(targets.logits.astype(np.float16), pa.float16()),
        "tail_odds": column(targets.tail_odds, pa.float32()),
    }
    if targets.log_p is not None:
        positions, temperatures, width = targets.log_p.shape
        columns["log_p"] = column(targets.log_p.reshape(positions, temperatures * width), pa.float32())
    return Encoded(columns, {"ids": "ids", "logits": "levels", "log_p": "levels", "tail_odds": "tail"})


def decode(
    columns: dict[str, pa.Array],
    lengths: np.ndarray,
    tokens: np.ndarray,
    temperatures: tuple[float, ...],
    tables: bytes | None = None,
) -> SoftTargets:
    def matrix(name: str, stored: pa.DataType, dtype: type) -> np.ndarray:
        return from_column(columns, name, lengths, stored).astype(dtype)

    targets = SoftTargets(
        matrix("ids", pa.int32(), np.int32),
        matrix("logits", pa.float16(), np.float32),
        matrix("tail_odds", pa.float32(), np.float32),
        temperatures,
    )
    positions, width = targets.ids.shape
    if targets.ids.shape != targets.logits.shape or targets.tail_odds.shape[1] != len(temperatures):
        raise ValueError(f"columns of {width} ids, {targets.logits.shape[1]} logits and other odds")
    if "log_p" not in columns:
        return targets
    log_p = matrix("log_p", pa.float32(), np.float32)
    if log_p.shape[1] != len(temperatures) * width:
        raise ValueError(f"{log_p.shape[1]} log-probabilities for {width} ids at {len(temperatures)} temperatures")
    return replace(targets, log_p=log_p.reshape(positions, len(temperatures), width))
