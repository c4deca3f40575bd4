"""A replica that runs a few batches as a capture does, timed, and keeps what other targets would be of some of them.

Shapes: n positions of a chunk, V vocabulary, K kept ids.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distributed_kd.cache import codecs, shard
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.corpus.batch import by_length, by_tokens
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.recipe import Targets
from distributed_kd.store.digest import fingerprint
from distributed_kd.teacher.replica import Replica
from distributed_kd.teacher.targets import choose, numbers_of

_PUT_NAME = ".plan-probe"


@dataclass(frozen=True)
class Timed:
    """A batch that went through the teacher."""

    rows: list[Row]
    seconds: float

    @property
    def positions(self) -> int:
        return sum(len(row.targets) for row in self.rows)


@dataclass(frozen=True)
class Beyond:
    """Seconds of what a capture does besides running the teacher: of a position, and of a file written."""

    tables: float
    encode: float
    put: float


@dataclass(frozen=True)
class Kept:
    """Other targets of some sequences, and what they cost at each temperature, summed over positions."""

    rows: list[Row]
    costs: dict[float, dict[str, float]]

    @staticmethod
    def together(parts: list[Kept]) -> Kept:
        costs: dict[float, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for part in parts:
            for temperature, found in part.costs.items():
                for name, value in found.items():
                    costs[temperature][name] += value
        return Kept([row for part in parts for row in part.rows], costs)

    def facts(self) -> dict[str, dict[str, float]]:
        """By temperature: means over positions."""
        positions = sum(len(row.targets) for row in self.rows)
        return {f"{t:g}": {name: value / positions for name, value in own.items()} for t, own in self.costs.items()}


class Probe(Replica):
    @property
    def has_tables(self) -> bool:
        return codecs.find(self.recipe.capture.codec).build_tables is not None

    def batches(self, train_shards: list[int], positions: int) -> list[list[Sequence]]:
        """A sample of about so many positions, in batches as large as a capture of this recipe forms them."""
        sample = [sequence for sequence in self._sample(train_shards, positions) if sequence.positions]
        rows = self.recipe.corpus.shard_sequences
        shards = [sample[begin : begin + rows] for begin in range(0, len(sample), rows)]
        ordered = [[own[place] for place in by_length(own)] for own in shards]
        return [batch for own in ordered for batch in by_tokens(own, self.recipe.capture.batch_tokens)]

    def table_positions(self, train_shards: list[int]) -> int:
        """Positions of the sample that a capture makes code tables from."""
        sample = self._sample(train_shards, self.recipe.capture.table_positions)
        return sum(sequence.positions for sequence in sample)

    def warm_up(self, sequence: Sequence) -> int:
        """Returns the teacher's number of ids."""
        self.teacher([sequence])
        return self.teacher.vocabulary_size

    def run(self, batches: list[list[Sequence]]) -> list[Timed]:
        return [self._timed(batch) for batch in batches]

    def _timed(self, batch: list[Sequence]) -> Timed:
        begun = time.perf_counter()
        targets = self.teacher(batch)
        seconds = time.perf_counter() - begun
        return Timed([Row(sequence, own) for sequence, own in zip(batch, targets, strict=True)], seconds)

    def beyond(self, rows: list[Row]) -> Beyond:
        """Seconds of table making, encoding and writing, the second time: the first compiles or loads the kernels."""
        codec, draws = self.recipe.capture.codec, self.recipe.targets.draws or 0
        vocabulary, positions = self.teacher.vocabulary_size, sum(len(row.targets) for row in rows)
        for _ in range(2):
            begun = time.perf_counter()
            tables = shard.build_tables(rows, codec, vocabulary, draws) if self.has_tables else None
            made = time.perf_counter()
            data, _ = shard.encode(rows, codec, fingerprint({}), 0, tables)
            encoded = time.perf_counter()
        self.store.put(_PUT_NAME, data)
        put = time.perf_counter()
        self.store.delete(_PUT_NAME)
        return Beyond((made - begun) / positions, (encoded - made) / positions, put - encoded)

    @torch.inference_mode()
    def keep(self, sequences: list[Sequence], variants: list[Targets]) -> list[Kept]:
        """What each variant keeps of the sequences, and what it costs."""
        found = [Kept([], defaultdict(lambda: defaultdict(float))) for _ in variants]
        for sequence in sequences:
            chunks: list[list[SoftTargets]] = [[] for _ in variants]
            numbers = [numbers_of(variant, [sequence]) for variant in variants]
            begin = 0
            for logits, hidden in self.teacher.outputs([sequence]):
                here = slice(begin, begin + len(logits))
                whole = _Whole(logits)
                for variant, drawn, own, kept in zip(variants, numbers, chunks, found, strict=True):
                    numbers_here = None if drawn is None else drawn[here]
                    own.append(choose(logits.clone(), variant, numbers_here, hidden).to_host())
                    for temperature in variant.temperatures:
                        for name, value in whole.costs(own[-1], variant, temperature).items():
                            kept.costs[temperature][name] += value
                begin = here.stop
            for kept, own in zip(found, chunks, strict=True):
                kept.rows.append(Row(sequence, SoftTargets.concatenate(own)))
        return [Kept(kept.rows, {t: dict(own) for t, own in kept.costs.items()}) for kept in found]


class _Whole:
    """The teacher's distribution over a chunk. What every variant asks of it is computed once."""

    def __init__(self, logits: Tensor) -> None:
        """logits: [n, V]."""
        self._logits = logits.double()
        self._found: dict[float, tuple[Tensor, Tensor]] = {}
        self._by_chance: dict[tuple[float, float], float] = {}

    def at(self, temperature: float) -> tuple[Tensor, Tensor]:
        """log p [n, V] and the entropy in nats [n]."""
        if temperature not in self._found:
            log_p = torch.log_softmax(self._logits / temperature, dim=1)
            self._found[temperature] = log_p, torch.special.entr(log_p.exp()).sum(dim=1)
        return self._found[temperature]

    def by_chance(self, temperature: float, drawn_at: float) -> float:
        """Squared error of one drawn id in the mean, summed over the chunk."""
        if (temperature, drawn_at) not in self._by_chance:
            log_p, log_drawn = self.at(temperature)[0], self.at(drawn_at)[0]
            error = (2 * log_p - log_drawn).exp().sum() - (2 * log_p).exp().sum()
            self._by_chance[temperature, drawn_at] = float(error)
        return self._by_chance[temperature, drawn_at]

    def costs(self, soft: SoftTargets, variant: Targets, temperature: float) -> dict[str, float]:
        """As `dkd audit` has them before rounding, summed over the chunk; the tail here by subtraction, in float64."""
        if variant.draws is not None:
            return {"squared_error_expected": self.by_chance(temperature, variant.drawn_at) / variant.draws}
        log_p, entropy = self.at(temperature)
        ids = torch.from_numpy(soft.ids.astype(np.int64)).to(log_p.device)
        kept = log_p.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).exp()
        mass = kept.sum(dim=1)
        p_tail, dropped = (1.0 - mass).clamp(min=0.0), log_p.shape[1] - (ids >= 0).sum(dim=1)
        tail_entropy = entropy - torch.special.entr(kept).sum(dim=1)
        evenly = torch.special.entr(p_tail) + p_tail * dropped.clamp(min=1).double().log()
        return {"kept_mass": float(mass.sum()), "truncation": float((evenly - tail_entropy).clamp(min=0.0).sum())}
