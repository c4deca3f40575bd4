"""The logit cache: soft targets by position, in shards that describe and verify themselves.

`distributed_kd.cache.open(uri)` is the door for other code: a `LogitCache` with a length, `cache[i]` and
`cache.batches(...)`.
"""

from distributed_kd.cache.reader import LogitCache, open

__all__ = ["LogitCache", "open"]
