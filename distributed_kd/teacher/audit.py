"""How far a cache is from the teacher's whole distribution, on a sample of its positions.

The teacher is run again and compared with what the cache says, at each temperature T. Completing the cached targets by
spreading the tail evenly over the V - K ids that are not kept, the KL from the whole distribution is exactly a sum of
    quantisation   KL over the K + 1 outcomes that the cache knows: what rounding cost
    truncation     p_tail * KL(p given that it is in the tail || even): what is not known of the tail's inside
Drawn ids have no tail, and that KL is infinite; what tells is the squared error sum_i (w_i - p_i)^2 of the estimates w,
beside what chance alone gives in the mean, sum_i p_T(i)^2 (1 / p_drawn(i) - 1) / draws.

The same for more and fewer ids, draws or mass, from the same run of the teacher, with the bytes that they take, so that
the next capture is cheaper.

Shapes: n positions of a chunk, V vocabulary, K kept ids.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distributed_kd import cache as caches
from distributed_kd import console
from distributed_kd.cache import codecs, shard
from distributed_kd.cache.manifest import CacheManifest
from distributed_kd.cache.reader import LogitCache
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.corpus.batch import by_tokens
from distributed_kd.errors import RequestError
from distributed_kd.models.locate import identity, locate
from distributed_kd.recipe import Capture, Targets, Teacher
from distributed_kd.teacher.forward import TeacherForward
from distributed_kd.teacher.targets import choose, numbers_of

PERCENTILES = (5, 25, 50, 75, 95)
_FACTORS = (0.25, 0.5, 1, 2, 4)
_MASSES = (0.5, 0.8, 0.9, 0.95, 0.99)


def audit(uri: str, teacher: str | None = None, positions: int = 4096) -> dict[str, Any]:
    """What `dkd audit --json` prints. `teacher`: where the teacher is now; where the capture had it when not given.

    Raises `RequestError` when there is no finished cache, or the teacher is not the one it was captured from.
    """
    cache = caches.open(uri)
    spec, targets, capture = _captured_with(cache.manifest, teacher, cache.store.uri)
    rows = _sample(cache, positions)
    if not rows:
        raise RequestError(f"{cache.store.uri} holds no position; there is nothing to audit")
    with console.waiting("audit: loading the teacher"):
        forward = TeacherForward(spec, targets, capture)
    variants = _variants(targets, forward.vocabulary_size)
    cached, kept = _Deviations(targets), [_Deviations(variant) for variant in variants]
    chosen: list[list[SoftTargets]] = [[] for _ in variants]
    drawn_at = targets.drawn_at if targets.draws is not None else targets.temperatures[0]
    by_sequence = {id(row.sequence): row for row in rows}
    done = 0
    with console.progress("audit", sum(len(row.targets) for row in rows)) as advance:
        pace = console.Pace("positions")
        for group in by_tokens([row.sequence for row in rows], capture.batch_tokens):
            own = SoftTargets.concatenate([by_sequence[id(sequence)].targets for sequence in group])
            drawn_by = [numbers_of(variant, group) for variant in variants]
            begin = 0
            for logits, hidden in forward.outputs(group):
                here = slice(begin, begin + len(logits))
                exact = {t: torch.log_softmax(logits.double() / t, dim=1) for t in {*targets.temperatures, drawn_at}}
                cached.add(exact, own[here])
                for place, variant in enumerate(variants):
                    numbers = drawn_by[place]
                    soft = choose(logits.clone(), variant, None if numbers is None else numbers[here], hidden).to_host()
                    kept[place].add(exact, soft)
                    chosen[place].append(soft)
                begin = here.stop
                done += len(logits)
                advance(done, pace(done))
    with console.waiting("audit: the bytes of each choice"):
        sizes = [
            _bytes(rows, SoftTargets.concatenate(parts), cache, v) for parts, v in zip(chosen, variants, strict=True)
        ]
    actual = float(cache.entries.bytes.sum() / cache.entries.positions.sum())
    present = variants.index(targets) if targets in variants else None
    return {
        "cache": cache.store.uri,
        "fingerprint": cache.fingerprint,
        "teacher": spec.model,
        "method": targets.method,
        "k": cache.manifest.k,
        "positions": done,
        "sequences": len(rows),
        "bytes_per_position": actual,
        "temperatures": cached.facts(),
        "alternatives": [
            _name(variant)
            | {
                "present": variant == targets,
                "bytes_per_position": size * (actual / sizes[present] if present is not None else 1.0),
                "temperatures": deviations.facts(),
            }
            for variant, size, deviations in zip(variants, sizes, kept, strict=True)
        ],
    }


def _captured_with(manifest: CacheManifest, moved_to: str | None, uri: str) -> tuple[Teacher, Targets, Capture]:
    """Teacher, targets and capture settings as the manifest says, the teacher's files checked."""
    made_from = manifest.made_from
    if manifest.imported is not None:
        raise RequestError(f"{uri} was imported, from a teacher whose files it does not know; audit a small capture")
    try:
        own = made_from["teacher"]
        spec = Teacher(model=own["model"], revision=own["revision"], dtype=own["dtype"])
        targets, capture = Targets(**made_from["targets"]), Capture(**made_from["capture"])
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"{uri} was not captured from one teacher; audit the caches that it was made from"
        ) from error
    if moved_to is not None:
        spec = spec.model_copy(update={"model": moved_to, "revision": None})
    found = identity(locate(spec.model, spec.revision))
    if found != manifest.teacher_identity:
        raise RequestError(
            f"{spec.model} is not the teacher of {uri}: its weights are {found['weights_sha256'][:12]}, those that the "
            f"cache is of {manifest.teacher_identity['weights_sha256'][:12]}; give the right one with --teacher"
        )
    return spec, targets, capture


def _sample(cache: LogitCache, positions: int) -> list[Row]:
    """Sequences spread evenly over the cache that hold about so many positions, one at least."""
    total = max(1, int(cache.entries.positions.sum()))
    count = min(len(cache), max(1, -(-positions * len(cache) // total)))
    places = np.unique(np.linspace(0, len(cache) - 1, count).round().astype(int))
    rows = (cache[int(place)] for place in places if len(cache))
    return [row for row in rows if len(row.targets)]


def _variants(targets: Targets, vocabulary: int) -> list[Targets]:
    """The targets themselves, and what a cheaper or a dearer capture would keep."""
    if targets.method == "top_k":
        values = {min(vocabulary, max(1, int(targets.k * factor))) for factor in _FACTORS}
        return [targets.model_copy(update={"k": k}) for k in sorted(values)]
    if targets.method == "top_p":
        return [targets.model_copy(update={"p": p}) for p in sorted({*_MASSES, targets.p or 1.0})]
    if targets.draws is not None:
        values = {max(1, int(targets.draws * factor)) for factor in _FACTORS}
        return [targets.model_copy(update={"draws": draws}) for draws in sorted(values)]
    return [targets]


def _name(variant: Targets) -> dict[str, Any]:
    key = {"top_k": "k", "top_p": "p", "sample": "draws"}.get(variant.method)
    return {key: getattr(variant, key)} if key else {}


def _bytes(rows: list[Row], targets: SoftTargets, cache: LogitCache, variant: Targets) -> float:
    """Bytes a position of a shard that keeps these targets, in the cache's codec; with code tables made from every
    second sequence, and then of the other ones."""
    ends = np.cumsum([0, *[len(row.targets) for row in rows]])
    own = [replace(row, targets=targets[ends[n] : ends[n + 1]]) for n, row in enumerate(rows)]
    codec, tables = cache.manifest.codec, None
    if codecs.find(codec).build_tables is not None:
        sample, own = own[::2], own[1::2] or own
        tables = shard.build_tables(sample, codec, cache.manifest.vocabulary_size, variant.draws or 0)
    data, _ = shard.encode(own, codec, cache.manifest.fingerprint, 0, tables)
    return len(data) / sum(len(row.targets) for row in own)


class _Deviations:
    """Collects, for each temperature, what targets cost at each position."""

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        self.found: dict[tuple[float, str], list[np.ndarray]] = defaultdict(list)

    def add(self, exact: dict[float, Tensor], soft: SoftTargets) -> None:
        """exact: [n, V] float64 log p of the teacher at each temperature; soft: n cached targets."""
        for temperature in soft.temperatures:
            for name, values in self._costs(exact, soft, temperature).items():
                self.found[temperature, name].append(values.cpu().numpy())

    def _costs(self, exact: dict[float, Tensor], soft: SoftTargets, temperature: float) -> dict[str, Tensor]:
        log_p = exact[temperature]
        said, said_tail = (torch.from_numpy(a).to(log_p.device) for a in soft.log_probabilities(temperature))
        ids = torch.from_numpy(soft.ids.astype(np.int64)).to(log_p.device)
        is_kept = ids >= 0
        ids = torch.where(is_kept, ids, ids[:, :1])  # a row's first id is there
        at_kept = log_p.gather(1, ids)
        p = at_kept.exp().masked_fill(~is_kept, 0.0)
        costs = {"kept_mass": p.sum(dim=1)}
        if self.targets.draws is not None:
            w = said.double().exp()
            squares = (2 * log_p).exp().sum(dim=1)
            costs["squared_error"] = squares - 2 * (w * p).sum(dim=1) + (w * w).sum(dim=1)
            by_chance = ((2 * log_p - exact[self.targets.drawn_at]).exp().sum(dim=1) - squares) / self.targets.draws
            return costs | {"squared_error_expected": by_chance}
        rest = log_p.scatter(1, ids, -torch.inf)
        log_tail = rest.logsumexp(dim=1)
        p_tail = log_tail.exp()
        spread = log_tail - (log_p.shape[1] - is_kept.sum(dim=1)).clamp(min=1).log()
        inside = rest - spread[:, None]
        costs["truncation"] = torch.where(rest > -torch.inf, rest.exp() * inside, 0.0).sum(dim=1)
        rounding = torch.where(p > 0, p * (at_kept - said), 0.0).sum(dim=1)
        costs["quantisation"] = rounding + torch.where(p_tail > 0, p_tail * (log_tail - said_tail), 0.0)
        costs["kl"] = costs["truncation"] + costs["quantisation"]
        return costs

    def facts(self) -> dict[str, Any]:
        """By temperature: means over positions, and the kept mass by percentile."""
        facts: dict[str, Any] = defaultdict(dict)
        for (temperature, name), parts in self.found.items():
            values = np.concatenate(parts)
            facts[f"{temperature:g}"][name] = float(values.mean())
            if name == "kept_mass":
                spread = {f"p{q}": float(np.percentile(values, q)) for q in PERCENTILES}
                facts[f"{temperature:g}"]["kept_mass_percentiles"] = spread
        return dict(facts)
