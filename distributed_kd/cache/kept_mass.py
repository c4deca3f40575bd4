"""How much of the teacher's mass fewer ids would have kept: from the cache alone, on a sample of its positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from distributed_kd.cache.reader import LogitCache
from distributed_kd.cache.soft_targets import SoftTargets

_SHARDS = 8  # read at most


def kept_mass_by_k(cache: LogitCache, positions: int = 4096) -> dict[str, Any] | None:
    """Mean mass of the k most probable ids, for k = 1, 2, 4 and on up to all that are kept.

    At T = 1, or the first temperature that the cache holds. None where ids were drawn, whose mass says nothing of k,
    and where there is no position. Raises `RequestError` when a shard is not good.
    """
    soft = _sample(cache, positions)
    if cache.manifest.method == "sample" or soft is None:
        return None
    temperature = 1.0 if 1.0 in soft.temperatures else soft.temperatures[0]
    log_p, _ = soft.log_probabilities_in_double(temperature)
    mass = np.cumsum(np.sort(np.exp(log_p), axis=1)[:, ::-1], axis=1).mean(axis=0)
    counts = [1 << power for power in range(len(mass).bit_length()) if 1 << power < len(mass)] + [len(mass)]
    return {
        "temperature": temperature,
        "positions": len(soft),
        "k": counts,
        "mass": [float(mass[count - 1]) for count in counts],
    }


def _sample(cache: LogitCache, positions: int) -> SoftTargets | None:
    """About so many positions: the beginnings of shards that are spread evenly over the cache."""
    if not len(cache.entries):
        return None
    places = np.unique(np.linspace(0, len(cache.entries) - 1, _SHARDS).round().astype(int))
    parts = []
    for place in map(int, places):
        entry = cache.entry(place)
        count = min(entry.rows, -(-positions * entry.rows // (len(places) * max(1, entry.positions))))
        first = int(cache.entries.ends[place])
        rows = cache.rows(place, cache.table(place), np.arange(first, first + count))
        parts += [row.targets for row in rows if len(row.targets)]
    return SoftTargets.concatenate(parts) if parts else None
