"""A cache of other sequences than the artifact's cannot train, though every digest in it is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distributed_kd import cache
from distributed_kd.cache import shard
from distributed_kd.cache.manifest import CacheManifest
from distributed_kd.cache.shard import Row
from distributed_kd.cache.verify import verify
from distributed_kd.corpus.sequences import (
    SCHEMA,
    Sequence,
    Sequences,
    SequencesManifest,
    SplitSummary,
    TokenizerIdentity,
    sequences_to_columns,
)
from distributed_kd.errors import RequestError
from distributed_kd.store.digest import fingerprint, sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, put_index, put_shard, shard_name
from distributed_kd.student.identity import SequenceDigests, sequence_digest
from distributed_kd.student.order import GlobalOrder
from distributed_kd.student.stream import Stream
from tests.cache.caches import TEMPERATURES, make_cache

ROWS, SHARDS = 4, 3
DAMAGED = 1  # the shard whose sequences are others


def put_sequences(workdir: Store, sequences: list[Sequence]) -> Sequences:
    """The artifact that a cache of these would have been captured from."""
    store = workdir.child("sequences")
    entries = []
    for number in range(SHARDS):
        own = sequences[number * ROWS : (number + 1) * ROWS]
        table = pa.table(sequences_to_columns(own), schema=SCHEMA)
        entries.append(put_shard(store, number, table, sum(one.positions for one in own)))
    SequencesManifest(
        made_from={}, fingerprint=fingerprint({}), tokenizer=TokenizerIdentity(name="", sha256="", vocabulary_size=1),
        sequence_length=14, packing="isolate", index=put_index(store, entries),
        splits={"train": SplitSummary(documents=1, sequences=12, positions=1, first_shard=0, end_shard=SHARDS)},
    ).put(store)  # fmt: skip
    return Sequences.open(workdir)


@pytest.fixture
def workdir(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture
def rows(workdir: Store) -> list[Row]:
    return make_cache(workdir.child("cache"), "plain-1", SHARDS, ROWS)


@pytest.fixture
def sequences(workdir: Store, rows: list[Row]) -> Sequences:
    return put_sequences(workdir, [row.sequence for row in rows])


def put_instead(store: Store, rows: list[Row]) -> None:
    """The damaged shard written again with these rows, and every digest of the cache made right."""
    manifest = CacheManifest.read(store)
    assert manifest is not None
    entries = list(cache.open(store).entries)
    data, _ = shard.encode(rows, manifest.codec, manifest.fingerprint, DAMAGED)
    store.put(shard_name(DAMAGED), data)
    positions = sum(len(row.targets) for row in rows)
    entries[DAMAGED] = ShardEntry(DAMAGED, len(rows), positions, len(data), sha256(data))
    manifest.model_copy(update={"index": put_index(store, entries)}).put(store)


def train(store: Store, sequences: Sequences | None) -> list[int]:
    """The ids of an epoch's sequences, as a trainer would be given them."""
    opened = cache.open(store)
    order = GlobalOrder(opened.manifest.fingerprint, 0, opened.entries.rows, 4)
    digests = SequenceDigests(sequences) if sequences is not None else None
    stream = Stream(
        opened, order, rank=0, world=1, micro_batch=2, temperature=TEMPERATURES[0], sequences=digests
    )  # fmt: skip
    return [one for step in stream.steps(0, 3) for batch in step for one in batch.sequence_ids]


def other(row: Row, **fields: np.ndarray) -> Row:
    return replace(row, sequence=replace(row.sequence, **fields))


def tokens_of_another(rows: list[Row]) -> list[Row]:
    """One token of one sequence is another."""
    ids = rows[2].sequence.input_ids.copy()
    ids[-1] += 1
    return [*rows[:2], other(rows[2], input_ids=ids), rows[3]]


def tokens_swapped(rows: list[Row]) -> list[Row]:
    """Two tokens of one sequence, in each other's place."""
    ids = rows[1].sequence.input_ids.copy()
    first, second = 0, int(np.flatnonzero(ids != ids[0])[0])
    ids[[first, second]] = ids[[second, first]]
    return [rows[0], other(rows[1], input_ids=ids), *rows[2:]]


def targets_swapped(rows: list[Row]) -> list[Row]:
    """The sequences of two rows with their documents, under the other's id."""
    one, two = rows[0].sequence.sequence_id, rows[3].sequence.sequence_id
    return [
        replace(rows[3], sequence=replace(rows[3].sequence, sequence_id=one)), *rows[1:3],
        replace(rows[0], sequence=replace(rows[0].sequence, sequence_id=two)),
    ]  # fmt: skip


def documents_cut_elsewhere(rows: list[Row]) -> list[Row]:
    lengths = rows[3].sequence.document_lengths + np.array([1, -1], np.int32)
    return [*rows[:3], other(rows[3], document_lengths=lengths)]


OTHERS = [tokens_of_another, tokens_swapped, targets_swapped, documents_cut_elsewhere]


@pytest.mark.parametrize("change", OTHERS)
def test_other_sequences_behind_right_digests_do_not_train(
    workdir: Store, rows: list[Row], sequences: Sequences, change: Callable[[list[Row]], list[Row]]
) -> None:
    store = workdir.child("cache")
    assert sorted(train(store, sequences)) == list(range(12))
    put_instead(store, change(rows[DAMAGED * ROWS : (DAMAGED + 1) * ROWS]))
    assert verify(store, 1).all_good  # nothing in the cache itself tells
    assert sorted(train(store, None)) == list(range(12))
    with pytest.raises(RequestError, match=f"{shard_name(DAMAGED)} has other tokens or documents in the place of") as e:
        train(store, sequences)
    assert "\n" not in str(e.value)


def test_a_sequence_under_another_id_does_not_train_though_nothing_is_there_to_compare_it_with(
    workdir: Store, rows: list[Row]
) -> None:
    own = rows[DAMAGED * ROWS : (DAMAGED + 1) * ROWS]
    put_instead(workdir.child("cache"), [own[1], own[0], *own[2:]])
    with pytest.raises(RequestError, match=f"{shard_name(DAMAGED)} has sequence [45] in the place of sequence [45]:"):
        train(workdir.child("cache"), None)


def test_a_digest_is_of_all_that_a_sequence_is_but_its_number(rows: list[Row]) -> None:
    one = rows[5].sequence
    mask = one.loss_mask.copy()
    mask[0] ^= True
    changed = [
        replace(one, input_ids=one.input_ids[::-1].copy()), replace(one, loss_mask=mask),
        replace(one, documents=one.documents + 1), replace(one, document_lengths=one.document_lengths[::-1].copy()),
    ]  # fmt: skip
    digests = {sequence_digest(sequence) for sequence in [one, *changed]}
    assert len(digests) == 5
    assert sequence_digest(replace(one, sequence_id=99)) == sequence_digest(one)
