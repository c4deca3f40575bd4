"""dkd merge: the caches of several teachers over the same sequences become one, which training reads like any other.

The arithmetic is in `ensemble.py`. A shard of the merge is made of that shard of each member, so that one of each is
in memory. As in a capture, the manifest comes first, a receipt follows each shard, and the index is written last: a
merge that died goes on where its receipts end.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from distributed_kd import console
from distributed_kd.cache import ensemble
from distributed_kd.cache.codecs import dense, plain
from distributed_kd.cache.ensemble import Mean, Member
from distributed_kd.cache.manifest import CacheManifest, ErrorBound, Merge, Receipt
from distributed_kd.cache.processes import processors, unordered
from distributed_kd.cache.reader import LogitCache
from distributed_kd.cache.reader import open as open_cache
from distributed_kd.cache.receipts import Receipts
from distributed_kd.cache.shard import Row
from distributed_kd.cache.verify import check_shard, tables_of
from distributed_kd.cache.writer import commit, put_rows
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import RequestError
from distributed_kd.store.digest import differences, fingerprint
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import SHARDS, ShardEntry, shard_name
from distributed_kd.store.manifest import Run, peak_memory_bytes

_POSITIONS_A_PROCESS = 1 << 17  # a process takes seconds to start; this is what one merges meanwhile


def merge(
    uris: list[str],
    out: str,
    weights: list[float] | None = None,
    mean: str = "arithmetic",
    jobs: int | None = None,
) -> CacheManifest:
    """Writes the mean of the finished caches `uris` to `out`, or what is missing of it.

    weights: one a member, in proportion; equal where not given. jobs: processes (None: one a processor, where there is
    work for them). Raises `RequestError` for caches that do not fit one another, or an `out` that holds something else.
    """
    begun = time.monotonic()
    weights = _normalised(weights, len(uris))
    if mean not in get_args(Mean):
        raise RequestError(f"--mean {mean} is not one of {', '.join(get_args(Mean))}")
    members = [open_cache(uri) for uri in uris]
    store = Store(out)
    for member in members:
        if _place(member.store) == _place(store):
            raise RequestError(f"--out {out} is one of the caches to merge; choose another folder")
    _refuse_what_does_not_fit(members, mean)

    manifest = _new_manifest(members, weights, mean)
    found = CacheManifest.read(store)
    if found is None:
        store.check_writable()
        manifest.put(store)
    elif found.fingerprint != manifest.fingerprint:
        lines = "; ".join(differences(found.made_from, manifest.made_from)[:6])
        raise RequestError(f"--out {out} holds another cache ({lines}); choose another folder, or delete that one")
    elif found.index is not None:
        console.say(f"merge: done already ({store.uri}, fingerprint {found.fingerprint[:12]}), skipped")
        return found

    receipts = _receipts(store, manifest)
    missing = receipts.missing.tolist()
    if receipts:
        console.say(f"merge: {len(receipts)} of {manifest.shards} shards are there already; going on")
    _merge_shards(members, store, manifest, missing, receipts, jobs)
    Run(time.monotonic() - begun, peak_memory_bytes(with_children=True)).put(store)
    assert manifest.merge is not None
    merge = manifest.merge.model_copy(update={"error_bound": _error_bound(receipts)})
    return commit(store, manifest.model_copy(update={"merge": merge}), receipts)


def _normalised(weights: list[float] | None, members: int) -> list[float]:
    if members < 2:
        raise RequestError(f"a merge is of two caches at least; {members} is given")
    weights = [1.0] * members if weights is None else weights
    if len(weights) != members:
        raise RequestError(f"--weights has {len(weights)} numbers for {members} caches; give one for each")
    if not all(math.isfinite(weight) and weight > 0.0 for weight in weights):
        raise RequestError(f"--weights {weights}: each must be a finite number above 0")
    largest = max(weights)  # divided by first, so that no sum overflows
    total = math.fsum(weight / largest for weight in weights)
    shares = [weight / largest / total for weight in weights]
    if min(shares) == 0.0:
        raise RequestError(f"--weights {weights}: the smallest is nothing beside the largest")
    return shares


def _place(store: Store) -> tuple[Any, str]:
    return store.fs.protocol, os.path.realpath(store.root) if store.is_local else store.root


def _refuse_what_does_not_fit(members: list[LogitCache], mean: str) -> None:
    """Raises `RequestError` naming each cache that differs from the first, and everything that differs."""
    lines = []
    for member in members[1:]:
        found = differences(_to_be_equal(member.manifest), _to_be_equal(members[0].manifest))
        if found:
            lines.append(f"{member.store.uri} is not as {members[0].store.uri}: {', '.join(found)}")
    vocabularies = sorted({member.manifest.vocabulary_size for member in members})
    if mean == "geometric":
        if len(vocabularies) > 1:
            lines.append(f"a geometric mean needs one vocabulary, these have {vocabularies} ids: take the arithmetic")
        for member in members:
            if member.manifest.method == "sample":
                lines.append(
                    f"{member.store.uri} holds drawn ids, and an estimate of 0 has no logarithm: take the arithmetic "
                    "mean"
                )
    for member in members:
        if member.manifest.hidden is not None:
            lines.append(f"{member.store.uri} keeps hidden states, which have no mean: capture without targets.hidden")
    if lines:
        raise RequestError(f"these caches cannot be merged: {'; '.join(lines)}")


def _to_be_equal(manifest: CacheManifest) -> dict[str, Any]:
    return {
        "sequences": manifest.made_from.get("sequences"),
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "temperatures": manifest.temperatures,
        "packing": manifest.packing,
        "shards": manifest.shards,
    }


def _new_manifest(members: list[LogitCache], weights: list[float], mean: str) -> CacheManifest:
    manifests = [member.manifest for member in members]
    first = manifests[0]
    methods = {manifest.method for manifest in manifests}
    vocabulary = max(manifest.vocabulary_size for manifest in manifests)
    one_softmax = mean == "geometric" or len(first.temperatures) == 1
    is_dense = {manifest.codec for manifest in manifests} == {dense.NAME} and one_softmax
    codec = dense.NAME if is_dense else plain.NAME
    prints = [manifest.fingerprint for manifest in manifests]
    made_from = {
        "sequences": first.made_from.get("sequences"), "members": prints, "weights": weights, "mean": mean,
        "codec": codec,
    }  # fmt: skip
    teachers = [f"{manifest.teacher} ({weight:.3g})" for manifest, weight in zip(manifests, weights, strict=True)]
    return CacheManifest.model_validate(
        {
            "made_from": made_from, "fingerprint": fingerprint(made_from), "codec": codec,
            "teacher": ", ".join(teachers), "revision": None, "tokenizer_sha256": first.tokenizer_sha256,
            "vocabulary_size": vocabulary, "packing": first.packing,
            "method": "sample" if "sample" in methods else "full" if methods == {"full"} else "top_k",
            "k": min(vocabulary, sum(manifest.k for manifest in manifests)),
            "temperatures": first.temperatures, "shards": first.shards, "index": None,
            "merge": Merge.model_validate({"mean": mean, "weights": weights, "members": prints}),
        }
    )  # fmt: skip


def _receipts(store: Store, manifest: CacheManifest) -> Receipts:
    """Those of shards whose file is there, too."""
    there = set(store.list(SHARDS))
    receipts = Receipts.read_good(store, manifest.fingerprint, manifest.shards)
    for shard in receipts:
        if os.path.basename(shard_name(shard)) not in there:
            del receipts[shard]
    return receipts


def _merge_shards(
    members: list[LogitCache],
    store: Store,
    manifest: CacheManifest,
    missing: list[int],
    receipts: Receipts,
    jobs: int | None,
) -> None:
    """Merges the missing shards, adding to `receipts`."""
    tasks = [tuple(member.entries[shard] for member in members) for shard in missing]
    total = sum(entries[0].positions for entries in tasks)
    jobs = min(jobs or min(processors(), 1 + total // _POSITIONS_A_PROCESS), max(1, len(tasks)))
    work = _MergeShard([(member.store, member.manifest) for member in members], store, manifest)
    done, pace = 0, console.Pace("positions")
    with console.progress("merge", total) as advance:
        for _, receipt in unordered(work, tasks, jobs):
            receipts[receipt.entry.shard] = receipt
            done += receipt.entry.positions
            advance(done, pace(done))


@dataclass(frozen=True)
class _MergeShard:
    """What a process does: the shard's entries in each member to the receipt of the merged shard."""

    members: list[tuple[Store, CacheManifest]]
    store: Store
    manifest: CacheManifest

    def __call__(self, entries: tuple[ShardEntry, ...]) -> Receipt:
        shard = entries[0].shard
        read = [_read(store, manifest, entry) for (store, manifest), entry in zip(self.members, entries, strict=True)]
        names = [store.uri for store, _ in self.members]
        for name, other in zip(names[1:], read[1:], strict=True):
            if len(other) != len(read[0]):
                raise RequestError(
                    f"shard {shard} has {len(read[0])} sequences in {names[0]} and {len(other)} in {name}; "
                    "they are not over the same sequences"
                )
        merged, bounds = [], []
        for rows in zip(*read, strict=True):
            for name, row in zip(names[1:], rows[1:], strict=True):
                if not _same(rows[0].sequence, row.sequence):
                    raise RequestError(
                        f"shard {shard}, sequence {rows[0].sequence.sequence_id}: {name} has another sequence there "
                        f"than {names[0]}; they cannot be merged"
                    )
            row, bound = self._merge_rows(rows, shard)
            merged.append(row)
            bounds.append(bound)
        return put_rows(self.store, self.manifest, shard, merged, error_bound=self._error_bound(np.concatenate(bounds)))

    def _merge_rows(self, rows: tuple[Row, ...], shard: int) -> tuple[Row, np.ndarray]:
        merge = self.manifest.merge
        assert merge is not None
        members = [
            Member(row.targets, manifest.vocabulary_size) for row, (_, manifest) in zip(rows, self.members, strict=True)
        ]
        sequence = rows[0].sequence
        try:
            targets, bound = ensemble.mean_of(members, merge.weights, merge.mean, self.manifest.method == "full")
        except ValueError as error:
            raise RequestError(f"shard {shard}, sequence {sequence.sequence_id} cannot be merged: {error}") from error
        return Row(sequence, targets), bound

    def _error_bound(self, bounds: np.ndarray) -> ErrorBound | None:
        """Over the shard's N positions, of bounds [N, G]; None where nothing is known of what a member did not keep.

        The bound is the arithmetic mean's. The ids that a merge keeps are not its most probable ones, and of drawn ones
        the error is that of drawing.
        """
        assert self.manifest.merge is not None
        known = all(manifest.merge is None and manifest.method != "sample" for _, manifest in self.members)
        if self.manifest.merge.mean != "arithmetic" or not known:
            return None
        return ErrorBound((bounds.sum(axis=0) / max(1, len(bounds))).tolist(), bounds.max(axis=0, initial=0.0).tolist())


def _read(store: Store, manifest: CacheManifest, entry: ShardEntry) -> list[Row]:
    try:
        return check_shard(store, manifest, entry, tables_of(store.uri, manifest.tables))
    except RequestError as error:
        raise RequestError(f"{store.uri} cannot be merged: {error}") from error


def _same(one: Sequence, other: Sequence) -> bool:
    return one.sequence_id == other.sequence_id and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("input_ids", "loss_mask", "labels", "features", "documents", "document_lengths")
    )


def _error_bound(receipts: Receipts) -> ErrorBound | None:
    """Over all positions, from the shards'; None where the merge has none."""
    own = list(receipts.values())
    bounds = [receipt.error_bound for receipt in own if receipt.error_bound is not None]
    if len(bounds) < len(own) or not own:
        return None
    positions = np.array([receipt.entry.positions for receipt in own], float)
    mean = positions @ np.array([bound.mean for bound in bounds]) / max(1.0, positions.sum())
    return ErrorBound(mean.tolist(), np.array([bound.maximum for bound in bounds]).max(axis=0).tolist())
