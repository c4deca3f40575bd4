"""What a capture will take, in bytes, time and money, before it is run: `dkd plan`.

A few batches, of sequences spread evenly over the training shards, go through the teacher where a capture of the recipe
would run it: on replicas of its cluster, started and loaded as a capture starts them, with the same batches, codec and
threads. The targets are not written; from their bytes follow those of the cache (`plan_bytes.py`). The time is that of

    start     until the replicas have loaded the teacher: this run's own
    tables    the codec's sample through one replica alone, and the tables made from it
    shards    handed to the replicas in turn, each as fast as beside the others here, or as it is encoded and written
    stop      ending the session: this run's own

so that it is for as many such machines as the recipe asks for. At most `_MOST_PROBES` replicas are started. Of some of
the sequences other targets are kept as well: what they would take and cost beside the recipe's own.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from distributed_kd import console
from distributed_kd.cache.manifest import CacheManifest, made_from_of
from distributed_kd.cache.shard import Row
from distributed_kd.corpus.sequences import Sequence, Sequences
from distributed_kd.errors import RequestError
from distributed_kd.launch.ray_session import ray_session, task_errors
from distributed_kd.models.locate import identity, locate
from distributed_kd.recipe import Recipe, Targets, dump
from distributed_kd.teacher.capture import new_manifest
from distributed_kd.teacher.plan_bytes import Corpus, Forecast, codec_for, forecast
from distributed_kd.teacher.plan_probe import Beyond, Kept, Probe, Timed

_SHARE = 0.5  # of the corpus that a probe takes at most
_LEAST_SEQUENCES = 8
_MOST_PROBES = 8
_VARIANT_POSITIONS = 4096

# Student's t at 97.5% for 1, 2, ... degrees of freedom.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)

KS = (16, 32, 64, 128, 256)
PS = (0.9, 0.95)
DRAWS = (22, 50)

_RECEIPT_BYTES = 480  # with numbers as long as those of shards of a thousand positions
_FILES = 7  # besides shards and receipts: the manifest twice, index, code tables, recipe, run, what it is computed in


@dataclass(frozen=True)
class _Found:
    """What the probe measured. `loaded` and `stopped`: seconds from the command's start, and of the session's end."""

    alone: list[Timed]
    beside: list[list[Timed]]
    beyond: Beyond
    kept: list[Kept]
    replicas: int  # of the capture
    loaded: float
    stopped: float

    @property
    def timed(self) -> list[Timed]:
        """The batches of replicas that ran at once."""
        return [one for own in self.beside for one in own]


def plan(
    recipe: Recipe, positions: int = 8192, price_hour: float | None = None, price_gb_month: float | None = None
) -> dict[str, Any]:
    """What `dkd plan --json` prints. Prices: of an hour of one device, and of 10^9 bytes kept for a month.

    Raises `RequestError` where a capture would, and for a corpus that is not prepared or too small to tell from.
    """
    begun = time.monotonic()
    if len(recipe.teachers) != 1:
        raise RequestError(
            f"a plan is of one teacher, and the recipe has {len(recipe.teachers)}; name one of them, as "
            "'teachers=[{model: ...}]', and add the plans up"
        )
    reader = Probe(recipe)
    entries = reader.sequences.shards("train")
    shards, total = entries.shard.tolist(), int(entries.positions.sum())
    spec = recipe.teachers[0]
    made_from = made_from_of(recipe, reader.sequences.manifest.fingerprint, identity(locate(spec.model, spec.revision)))
    manifest = new_manifest(recipe, reader.sequences, made_from, len(entries))
    batches = _batches(reader, shards, total, positions)
    reader.store.check_writable()
    variants = _variants(recipe.targets, manifest.vocabulary_size)
    found = _probe(recipe, len(entries), batches, variants, begun)

    rows = [row for one in [*found.alone, *found.timed] for row in one.rows]
    corpus = Corpus(total, int(entries.rows.sum()), len(entries), reader.table_positions(shards))
    own, others = _bytes(recipe, manifest, corpus, rows, variants, found.kept)
    files = _other_bytes(recipe, manifest, reader.sequences)
    seconds = _seconds(corpus.table_positions if reader.has_tables else 0, entries.positions, found)
    devices = found.replicas * spec.devices_per_replica
    hours = [value * devices / 3600 for value in (seconds["seconds"], *seconds["seconds_interval"])]
    stored = [value + files for value in (own.total, *own.interval)]
    return {
        "name": recipe.name,
        "teacher": spec.model,
        "codec": manifest.codec,
        "positions": total,
        "sequences": corpus.sequences,
        "shards": corpus.shards,
        "probe": {
            "positions": sum(len(row.targets) for row in rows),
            "sequences": len(rows),
            "batches": len(found.alone) + len(found.timed),
            "replicas": len(found.beside),
            "seconds": time.monotonic() - begun,
        },
        "forecast": {
            "bytes_per_position": own.total / total,
            "bytes_total": own.total,
            "bytes_total_interval": list(own.interval),
            "bytes_stored": stored[0],
            "bytes_tables": own.tables,
            "puts": 2 * corpus.shards + _FILES,
            **seconds,
            "replicas": found.replicas,
            "devices": devices,
            "accelerator_hours": hours[0],
            "accelerator_hours_interval": hours[1:],
            **_priced("price_hours", hours, price_hour),
            **_priced("price_month", [value / 1e9 for value in stored], price_gb_month),
        },
        "targets": [
            _name(variant)
            | {
                "present": variant == recipe.targets,
                "codec": codec_for(variant, manifest.codec),
                "bytes_per_position": size.total / total,
                "bytes_total": size.total,
                "bytes_total_interval": list(size.interval),
                "temperatures": kept.facts(),
                **_priced("price_month", [value / 1e9 for value in (size.total, *size.interval)], price_gb_month),
            }
            for variant, size, kept in zip(variants, others, found.kept, strict=True)
        ],
    }


def _batches(reader: Probe, shards: list[int], total: int, positions: int) -> list[list[Sequence]]:
    summary = reader.sequences.manifest.splits["train"]
    least = _LEAST_SEQUENCES * total // max(1, summary.sequences)
    batches = reader.batches(shards, max(1, least, min(positions, int(_SHARE * total)))) if total else []
    if sum(len(batch) for batch in batches) < _LEAST_SEQUENCES // 2:
        raise RequestError(
            f"{reader.sequences.store.uri} has {summary.sequences} training sequences, too few to tell anything from; "
            "`dkd cache` takes no time on them"
        )
    if len(batches) == 1:  # a spread of seconds needs two
        batches = [batches[0][::2], batches[0][1::2]]
    return batches


def _variants(targets: Targets, vocabulary: int) -> list[Targets]:
    """The recipe's own targets, then others to choose from."""
    temperatures = targets.temperatures
    cap = min(vocabulary, targets.k if targets.method == "top_p" else max(KS))
    others = [
        *(Targets(method="top_k", k=k, temperatures=temperatures) for k in sorted({min(k, vocabulary) for k in KS})),
        *(Targets(method="top_p", p=p, k=cap, temperatures=temperatures) for p in PS),
        *(
            Targets(
                method="sample", draws=draws, temperatures=temperatures, seed=targets.seed,
                draw_temperature=targets.draw_temperature,
            )
            for draws in DRAWS
        ),
    ]  # fmt: skip
    others = [other.model_copy(update={"hidden": targets.hidden}) for other in others]
    return [targets, *(other for other in others if other.made_from() != targets.made_from())]


def _name(variant: Targets) -> dict[str, Any]:
    keys = {"top_k": ("k",), "top_p": ("p", "k"), "sample": ("draws",), "full": ()}[variant.method]
    return {"method": variant.method} | {key: getattr(variant, key) for key in keys}


def _probe(recipe: Recipe, shards: int, batches: list[list[Sequence]], variants: list[Targets], begun: float) -> _Found:
    with ray_session(recipe.capture.address) as cluster, task_errors():
        import ray

        from distributed_kd.teacher.fleet import Fleet

        places, resources = Fleet(recipe, cluster).places()
        asked = recipe.capture.replicas
        replicas = min(shards, asked if isinstance(asked, int) else max(1, places))
        if replicas > places:
            console.say(f"plan: {replicas} replicas are asked for and {places} fit the cluster now; the time is of all")
        count = max(1, min(replicas, places, _MOST_PROBES, len(batches) - 1))
        remote: Any = ray.remote  # typed for functions
        probes = [remote(**resources, max_restarts=0)(Probe).remote(recipe) for _ in range(count)]
        with console.waiting("plan: loading the teacher"):
            ray.get([probe.load.remote() for probe in probes])
        loaded = time.monotonic() - begun
        sequences = [sequence for batch in batches for sequence in batch]
        with console.waiting("plan: warming up"):
            ray.get([probe.warm_up.remote(sequences[0]) for probe in probes])
        with console.waiting(f"plan: running {len(batches)} batches"):
            alone: list[Timed] = []
            if count > 1:
                alone, batches = ray.get(probes[0].run.remote(batches[:1])), batches[1:]
            each = len(batches) // count
            parts = [batches[n * each : (n + 1) * each] for n in range(count)]
            beside = ray.get([probe.run.remote(own) for probe, own in zip(probes, parts, strict=True)])
        with console.waiting("plan: encoding them"):
            rows = [row for one in [*alone, *(one for own in beside for one in own)] for row in one.rows]
            beyond = ray.get(probes[0].beyond.remote(rows))
        with console.waiting("plan: trying other targets"):
            some = _some([row.sequence for row in rows])
            shares = ray.get([probe.keep.remote(some[n::count], variants) for n, probe in enumerate(probes)])
            kept = [Kept.together([share[place] for share in shares]) for place in range(len(variants))]
        stopping = time.monotonic()
    return _Found(alone, beside, beyond, kept, replicas, loaded, time.monotonic() - stopping)


def _some(sequences: list[Sequence]) -> list[Sequence]:
    """Every third sequence, or fewer: what holds about `_VARIANT_POSITIONS`, four at least."""
    positions = sum(sequence.positions for sequence in sequences)
    step = min(max(3, round(positions / _VARIANT_POSITIONS)), max(1, len(sequences) // 4))
    return sequences[::step]


def _bytes(
    recipe: Recipe,
    manifest: CacheManifest,
    corpus: Corpus,
    rows: list[Row],
    variants: list[Targets],
    kept: list[Kept],
) -> tuple[Forecast, list[Forecast]]:
    """The recipe's own bytes from all rows; then those of the variants, of which its own are the first.

    The variants are forecast from fewer rows: what these say too much or too little of the recipe's own targets, they
    say of others in the same codec.
    """
    vocabulary = manifest.vocabulary_size
    own = forecast(rows, manifest.codec, recipe.targets, vocabulary, corpus)
    found = []
    for variant, one in zip(variants, kept, strict=True):
        codec = codec_for(variant, manifest.codec)
        found.append((codec, forecast(one.rows, codec, variant, vocabulary, corpus)))
    of_own = own.shards / found[0][1].shards
    return own, [own, *(size.times(of_own) if codec == manifest.codec else size for codec, size in found[1:])]


def _other_bytes(recipe: Recipe, manifest: CacheManifest, sequences: Sequences) -> float:
    """Of what is stored besides shards and code tables."""
    index = (
        sequences.manifest.index.bytes
        * manifest.shards
        / max(split.end_shard for split in sequences.manifest.splits.values())
    )
    return index + manifest.shards * _RECEIPT_BYTES + len(manifest.model_dump_json()) + len(dump(recipe))


def _seconds(table_positions: int, shards: np.ndarray, found: _Found) -> dict[str, Any]:
    """table_positions: that code tables are made from, 0 without any; shards: positions of each.

    The interval is that of the teacher's pace, from batch to batch.
    """
    pace, edges = _pace(found.timed)
    alone = _pace(found.alone)[0] if found.alone else pace

    def steps(factor: float) -> dict[str, float]:
        written = shards * found.beyond.encode + 2 * found.beyond.put  # while the teacher has the next shard
        return {
            "start": found.loaded,
            "tables": table_positions * (factor * alone + found.beyond.tables),
            "shards": _makespan(np.maximum(shards * factor * pace, written), found.replicas),
            "stop": found.stopped,
        }

    return {
        "positions_per_second": found.replicas / max(pace, found.beyond.encode),
        "seconds": sum(steps(1.0).values()),
        "seconds_interval": [sum(steps(edge / pace).values()) for edge in edges],
        "seconds_by_step": steps(1.0),
    }


def _pace(batches: list[Timed]) -> tuple[float, tuple[float, float]]:
    """Seconds a position, and the 95% interval of it by Student's t: batches are few."""
    seconds = np.array([one.seconds for one in batches])
    positions = np.array([one.positions for one in batches], float)
    pace, count = float(seconds.sum() / positions.sum()), len(batches)
    if count == 1:
        return pace, (pace, pace)
    error = np.sqrt(((seconds - pace * positions) ** 2).sum() / (count * (count - 1))) / positions.mean()
    reach = float(error) * _T[min(count - 1, len(_T)) - 1]
    return pace, (max(0.0, pace - reach), pace + reach)


def _makespan(seconds: np.ndarray, replicas: int) -> float:
    """When the last of so many replicas ends, each of which takes the next shard when it has done one."""
    free = [0.0] * min(replicas, len(seconds))
    for shard in seconds.tolist():
        heapq.heapreplace(free, free[0] + shard)
    return max(free)


def _priced(name: str, amounts: list[float], price: float | None) -> dict[str, Any]:
    """amounts: the forecast and the edges of its interval. Nothing without a price."""
    if price is None:
        return {}
    return {name: amounts[0] * price, f"{name}_interval": [amount * price for amount in amounts[1:]]}
