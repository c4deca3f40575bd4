"""Codecs: how soft targets become columns of a shard and come back.

A codec is one file with a `NAME`, `encode(targets) -> Encoded` and `decode(columns, temperatures) -> SoftTargets`.
The manifest names the codec, so a cache stays readable when another becomes the default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from distributed_kd.cache.codecs import plain
from distributed_kd.cache.codecs.columns import Encoded
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.errors import RequestError


@dataclass(frozen=True)
class Codec:
    name: str
    encode: Callable[[SoftTargets], Encoded]
    decode: Callable[[dict[str, pa.Array], tuple[float, ...]], SoftTargets]


_CODECS = {module.NAME: Codec(module.NAME, module.encode, module.decode) for module in (plain,)}
DEFAULT = plain.NAME


def find(name: str) -> Codec:
    """Raises `RequestError` for a codec that this version does not know."""
    if name not in _CODECS:
        raise RequestError(f"the cache was written with codec {name!r}; this version reads {', '.join(_CODECS)}")
    return _CODECS[name]
