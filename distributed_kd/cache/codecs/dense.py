"""dense-1: every id of a small vocabulary, a byte each: for `targets.method: full`.

There are no ids and no tail. With d_i the row's largest logit less z_i and R the row's range (float16, rounded up), the
byte is round(255 * sqrt(d_i / R)): steps grow with the distance from the largest, so that they are finest where the
probability is at low temperatures, and still follow every logit where it is at high ones. The KL that this adds at
temperature T is about sum_i p_T(i) * step_i^2 / (24 T^2) with step_i = 2 sqrt(R d_i) / 255. A row whose range float16
has no normal number for (below 6e-5) is one of equal logits.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from distributed_kd.cache.codecs.columns import Encoded, refuse_log_p
from distributed_kd.cache.soft_targets import SoftTargets

NAME = "dense-1"
_HIGHEST = 255
_LARGEST_RANGE = 65_504.0  # float16's largest
_SMALLEST_RANGE = float(np.finfo(np.float16).smallest_normal)  # below it rounding up would move every level


def encode(targets: SoftTargets, lengths: np.ndarray, tokens: np.ndarray, tables: bytes | None = None) -> Encoded:
    """[N, V] targets that keep all ids, rising, to two columns. Raises `ValueError` for others."""
    vocabulary = targets.ids.shape[1]
    if not (targets.ids == np.arange(vocabulary)).all() or not np.isneginf(targets.tail_odds).all():
        raise ValueError(f"{NAME} keeps all ids of a vocabulary, in rising order, and no tail")
    refuse_log_p(targets)
    depths = -np.maximum(targets.logits.astype(np.float64), -_LARGEST_RANGE)
    depths[depths.max(axis=1, initial=0.0) < _SMALLEST_RANGE] = 0.0
    deepest = depths.max(axis=1, initial=0.0)
    ranges = deepest.astype(np.float16)
    ranges = np.where(ranges < deepest, np.nextafter(ranges, np.float16(np.inf)), ranges)
    levels = np.rint(_HIGHEST * np.sqrt(depths / np.maximum(ranges.astype(np.float64), 1e-30)[:, None]))
    ends = pa.array(np.cumsum([0, *lengths]), pa.int32())
    rows = pa.FixedSizeListArray.from_arrays(pa.array(levels.astype(np.uint8).ravel()), vocabulary)
    columns = {
        "levels": pa.ListArray.from_arrays(ends, rows),
        "ranges": pa.ListArray.from_arrays(ends, pa.array(ranges, pa.float16())),
    }
    return Encoded(columns, {"levels": "levels", "ranges": "levels"})


def decode(
    columns: dict[str, pa.Array],
    lengths: np.ndarray,
    tokens: np.ndarray,
    temperatures: tuple[float, ...],
    tables: bytes | None = None,
) -> SoftTargets:
    """The inverse: [N, V] targets. Raises `ValueError` for columns that no encoder wrote."""
    levels = _scored(columns, "levels", lengths)
    ranges = _scored(columns, "ranges", lengths)
    kind = levels.type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.uint8() or kind.list_size < 1:
        raise ValueError(f"column levels is of {kind}, not of fixed-width lists of uint8")
    if ranges.type != pa.float16():
        raise ValueError(f"column ranges is of {ranges.type}, not of float16")
    flat = levels.flatten()
    if flat.null_count or levels.null_count or ranges.null_count:
        raise ValueError("a column has nulls")
    positions, vocabulary = len(levels), kind.list_size
    squares = (np.arange(_HIGHEST + 1, dtype=np.float32) / np.float32(_HIGHEST)) ** 2
    spans = ranges.to_numpy(zero_copy_only=False).astype(np.float32)
    if not ((spans >= 0) & np.isfinite(spans)).all():
        raise ValueError("a range that is not a finite number of at least 0")
    logits = -(spans[:, None] * squares[flat.to_numpy().reshape(positions, vocabulary)])
    ids = np.broadcast_to(np.arange(vocabulary, dtype=np.int32), logits.shape)
    return SoftTargets(ids, logits, np.full((positions, len(temperatures)), -np.inf, np.float32), temperatures)


def _scored(columns: dict[str, pa.Array], name: str, lengths: np.ndarray) -> pa.Array:
    """A column's values of all positions, one after the other."""
    if name not in columns or not pa.types.is_list(columns[name].type):
        raise ValueError(f"there is no column {name} of lists")
    if not np.array_equal(columns[name].value_lengths().to_numpy(zero_copy_only=False), lengths):
        raise ValueError(f"column {name} does not hold what its sequences score")
    return columns[name].flatten()
