"""How many bytes a cache takes, from the targets of a few of its sequences.

A shard takes `framing + sum b_i`: what any shard costs, and what each sequence adds. Encoding sequences one by one, and
then in shards as large as the capture's, or as the probe allows, tells the two apart.

Code tables fit the positions that they were made from better than others, and others the better the more these were. So
each half of the probe is encoded with the tables of the other half, and with those of a half of that. A doubling of the
table positions saves some share of the bytes, and the next one `_SHRINKING` of that share: 3 to 4% a doubling from 1 to
8 thousand positions, 1.8% of the ids from 25 to 147 thousand (K = 64, SmolLM2). From there the forecast goes to as many
as the capture makes its tables from; to 61 thousand from 1 to 8, it came within 3% (K = 16, K = 64, 50 draws). Those
positions, which may be a good part of a small corpus, are themselves cached, and are forecast as sequences under tables
of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distributed_kd.cache import codecs, shard
from distributed_kd.cache.shard import Row
from distributed_kd.recipe import Targets

_SHRINKING = 0.8
_MOST_A_DOUBLING = 0.05  # what the smallest probes save is more, and does not go on
_RESAMPLES = 1000
_NO_CACHE = "0" * 64  # as long as a fingerprint is


@dataclass(frozen=True)
class Corpus:
    """What is captured. `table_positions`: of the sample that the capture makes its code tables from."""

    positions: int
    sequences: int
    shards: int
    table_positions: int

    @property
    def shard_sequences(self) -> int:
        return -(-self.sequences // self.shards)


@dataclass(frozen=True)
class Forecast:
    """Bytes of all shards and of the code tables; `interval`: 95% of both together, all of it the shards'."""

    shards: float
    tables: float
    interval: tuple[float, float]

    @property
    def total(self) -> float:
        """As `dkd inspect` counts them."""
        return self.shards + self.tables

    def times(self, factor: float) -> Forecast:
        """With other shards and the same code tables."""
        low, high = ((edge - self.tables) * factor + self.tables for edge in self.interval)
        return Forecast(self.shards * factor, self.tables, (low, high))


def codec_for(targets: Targets, wanted: str) -> str:
    """The wanted codec where it keeps such targets, else the smallest one that does."""
    if wanted == "plain-1" or targets.are_weighted:
        return "plain-1"
    return "dense-1" if targets.method == "full" else "compact-1"


def forecast(rows: list[Row], codec: str, targets: Targets, vocabulary: int, corpus: Corpus) -> Forecast:
    """The bytes of a cache of `corpus`, of which `rows` (four or more, a position at least in each) are a sample."""
    positions = np.array([len(row.targets) for row in rows], float)
    if codecs.find(codec).build_tables is None:
        added, framing = _sizes(rows, codec, None, corpus.shard_sequences)
        return _scaled(added, framing, positions, corpus)
    others, own, of_fewer = np.empty(len(rows)), np.empty(len(rows)), np.empty(len(rows))
    framings, tables_bytes, fewer_bytes = [], 0, 0
    for half in (0, 1):
        sample, rest = slice(half, None, 2), slice(1 - half, None, 2)
        tables = shard.build_tables(rows[sample], codec, vocabulary, targets.draws or 0)
        fewer = shard.build_tables(rows[sample][::2], codec, vocabulary, targets.draws or 0)
        others[rest], framing = _sizes(rows[rest], codec, tables, corpus.shard_sequences)
        own[sample], _ = _sizes(rows[sample], codec, tables, corpus.shard_sequences)
        of_fewer[rest], _ = _sizes(rows[rest], codec, fewer, corpus.shard_sequences)
        framings.append(framing)
        tables_bytes, fewer_bytes = tables_bytes + len(tables), fewer_bytes + len(fewer)

    doublings = math.log2(corpus.table_positions / (positions.sum() / 2))
    last = min(_MOST_A_DOUBLING, max(0.0, 1.0 - others.sum() / of_fewer.sum()))
    saved = last * sum_of_shrinking(doublings)
    inside = corpus.table_positions / corpus.positions
    factor = (1.0 - inside) * (1.0 - saved) + inside * own.sum() / others.sum()
    tables_forecast = tables_bytes / 2 * (tables_bytes / fewer_bytes) ** doublings
    return _scaled(
        others * factor, sum(framings) / 2, positions, corpus, tables_forecast, unsure=(1.0 - inside) * abs(saved) / 2
    )


def sum_of_shrinking(doublings: float) -> float:
    """r + r^2 + ... of so many terms, whole or not; below 0 for fewer positions, which cost more."""
    return _SHRINKING * (1.0 - _SHRINKING**doublings) / (1.0 - _SHRINKING)


def interval(amounts: np.ndarray, of: np.ndarray) -> tuple[float, float]:
    """95% interval of sum(amounts) / sum(of), by resampling the pairs."""
    drawn = np.random.default_rng(0).integers(0, len(of), (_RESAMPLES, len(of)))
    low, high = np.percentile(amounts[drawn].sum(axis=1) / of[drawn].sum(axis=1), (2.5, 97.5))
    return float(low), float(high)


def _sizes(rows: list[Row], codec: str, tables: bytes | None, shard_sequences: int) -> tuple[np.ndarray, float]:
    """Bytes that each row adds to a shard, and those of a shard without rows."""

    def encoded(some: list[Row]) -> int:
        return len(shard.encode(some, codec, _NO_CACHE, 0, tables)[0])

    alone = np.array([encoded([row]) for row in rows], float)
    shards = [rows[begin : begin + shard_sequences] for begin in range(0, len(rows), shard_sequences)]
    if len(shards) == len(rows):
        return alone, 0.0  # a sequence a shard
    framing = float(alone.sum() - sum(encoded(own) for own in shards)) / (len(rows) - len(shards))
    return alone - framing, framing


def _scaled(
    added: np.ndarray,
    framing: float,
    positions: np.ndarray,
    corpus: Corpus,
    tables: float = 0.0,
    unsure: float = 0.0,
) -> Forecast:
    """unsure: the share of the bytes by which the interval is widened on either side."""
    low, high = (corpus.positions * edge for edge in interval(added, positions))
    all_framing = corpus.shards * framing
    return Forecast(
        shards=corpus.positions * float(added.sum() / positions.sum()) + all_framing,
        tables=tables,
        interval=(low * (1.0 - unsure) + all_framing + tables, high * (1.0 + unsure) + all_framing + tables),
    )
