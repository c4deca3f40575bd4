"""Codecs: how soft targets become columns of a shard and come back.

A codec is one file with a `NAME` and
    encode(targets, lengths, tokens, tables) -> Encoded
    decode(columns, lengths, tokens, temperatures, tables) -> SoftTargets
where the N positions belong to sequences of `lengths` scored positions, `tokens` [N] int32 is the input id at each,
and `tables` are the bytes of the cache's code tables (None for a codec without). Columns have one row a sequence.
`encode` raises `ValueError` for targets that it cannot keep, `decode` for bytes that no encoder wrote.
The manifest names the codec, so a cache stays readable when another becomes the default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distributed_kd.cache.codecs import compact, dense, plain
from distributed_kd.cache.codecs.columns import Encoded
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.errors import RequestError


@dataclass(frozen=True)
class Codec:
    """`build_tables(sample, tokens, vocabulary_size, draws)`: see `build.py`; None for a codec without tables."""

    name: str
    encode: Callable[[SoftTargets, np.ndarray, np.ndarray, bytes | None], Encoded]
    decode: Callable[[dict[str, pa.Array], np.ndarray, np.ndarray, tuple[float, ...], bytes | None], SoftTargets]
    build_tables: Callable[[SoftTargets, np.ndarray, int, int], bytes] | None = None


_CODECS = {
    plain.NAME: Codec(plain.NAME, plain.encode, plain.decode),
    dense.NAME: Codec(dense.NAME, dense.encode, dense.decode),
    compact.NAME: Codec(compact.NAME, compact.encode, compact.decode, compact.build_tables),
}


def find(name: str) -> Codec:
    """Raises `RequestError` for a codec that this version does not know."""
    if name not in _CODECS:
        raise RequestError(f"the cache was written with codec {name!r}; this version reads {', '.join(_CODECS)}")
    return _CODECS[name]
