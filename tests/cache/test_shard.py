"""A shard of the cache: what goes in comes out, and what belongs elsewhere is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from distributed_kd import cache
from distributed_kd.cache import codecs, shard
from distributed_kd.cache.inspect import inspect
from distributed_kd.cache.manifest import PARTS, CacheManifest, Receipt
from distributed_kd.cache.shard import Row, build_tables, encode
from distributed_kd.cache.soft_targets import NO_ID, SoftTargets
from distributed_kd.corpus.packing import Part, pack
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Corpus
from distributed_kd.store.digest import fingerprint, sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, put_index, shard_name
from distributed_kd.teacher.targets import top_k

TEMPERATURES = (1.0, 2.0)


def rows(count: int = 5, k: int = 4, seed: int = 0) -> list[Row]:
    random = torch.Generator().manual_seed(seed)
    parts = [Part(number, np.arange(3 + number) + seed, np.ones(3 + number, bool)) for number in range(count)]
    sequences = pack(parts, Corpus(source="x", sequence_length=16, packing="none"))
    return [
        Row(one, top_k(torch.randn(one.positions, 30, generator=random) * 3, k, TEMPERATURES).to_host())
        for one in sequences
    ]


def table_of(data: bytes) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


def finished_cache(folder: Path, shards: int = 3) -> Store:
    store = Store(str(folder / "cache"))
    made_from = {"test": shards}
    key = fingerprint(made_from)
    entries = []
    for number in range(shards):
        own = rows(seed=number)
        data, _ = shard.encode(own, "plain-1", key, number)
        store.put(shard_name(number), data)
        entries.append(ShardEntry(number, len(own), sum(len(row.targets) for row in own), len(data), sha256(data)))
    CacheManifest(
        made_from=made_from, fingerprint=key, codec="plain-1", teacher="t", revision=None, tokenizer_sha256="x",
        vocabulary_size=30, packing="none", method="top_k", k=4, temperatures=list(TEMPERATURES), shards=shards,
        index=put_index(store, entries), bytes_by_part=dict.fromkeys(PARTS, 0), mean_kept_mass=0.5,
    ).put(store)  # fmt: skip
    return store


def assert_same(found: Row, expected: Row) -> None:
    np.testing.assert_array_equal(found.sequence.input_ids, expected.sequence.input_ids)
    np.testing.assert_array_equal(found.targets.ids, expected.targets.ids)
    np.testing.assert_allclose(found.targets.logits, expected.targets.logits, rtol=2**-10, atol=1e-6)
    np.testing.assert_array_equal(found.targets.tail_odds, expected.targets.tail_odds)


def test_rows_come_back() -> None:
    data, parts = shard.encode(rows(), "plain-1", "abc", 7)
    for found, expected in zip(shard.decode(table_of(data), 7, "abc", False, TEMPERATURES), rows(), strict=True):
        assert_same(found, expected)
    assert sum(parts.values()) == len(data)
    assert parts["ids"] > 0
    assert parts["levels"] > 0


def test_the_same_rows_give_the_same_bytes() -> None:
    assert shard.encode(rows(), "plain-1", "abc", 7) == shard.encode(rows(), "plain-1", "abc", 7)


@pytest.mark.parametrize("codec", ["plain-1", "compact-1"])
def test_threads_do_not_change_the_bytes(codec: str) -> None:
    made = rows(7)
    tables = build_tables(made, codec, 64, 0) if codec == "compact-1" else None
    one, parts = encode(made, codec, "abc", 7, tables)
    assert all(encode(made, codec, "abc", 7, tables, threads) == (one, parts) for threads in (2, 3, 7, 20))


@pytest.mark.parametrize(("number", "key"), [(8, "abc"), (7, "abd")])
def test_a_shard_in_anothers_place_is_refused(number: int, key: str) -> None:
    data, _ = shard.encode(rows(), "plain-1", "abc", 7)
    with pytest.raises(RequestError, match=r"says it is shard 7 of cache abc"):
        shard.decode(table_of(data), number, key, False, TEMPERATURES)


def test_an_unknown_codec_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match=r"codec 'later-9'; this version reads plain-1"):
        codecs.find("later-9")


def test_parts_of_unequal_width_are_filled() -> None:
    narrow, wide = rows(k=2)[0].targets, rows(k=4)[1].targets
    both = SoftTargets.concatenate([narrow, wide])
    assert both.ids.shape == (len(narrow) + len(wide), 4)
    assert (both.ids[: len(narrow), 2:] == NO_ID).all()
    log_p, log_p_tail = both.log_probabilities(1.0)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1) + np.exp(log_p_tail), 1.0, rtol=1e-5)


def test_the_library_door_reads_by_sequence_and_in_batches(tmp_path: Path) -> None:
    opened = cache.open(finished_cache(tmp_path).uri)
    expected = [row for number in range(3) for row in rows(seed=number)]
    assert len(opened) == len(expected)
    for index in (14, 0, 7):
        assert_same(opened[index], expected[index])
    batches = list(opened.batches(4))
    assert [len(batch) for batch in batches] == [4, 4, 4, 3]
    for found, one in zip([row for batch in batches for row in batch], expected, strict=True):
        assert_same(found, one)
    with pytest.raises(IndexError):
        opened[15]


def test_a_cache_of_another_tokenizer_packing_or_temperature_is_refused_by_name(tmp_path: Path) -> None:
    uri = finished_cache(tmp_path).uri
    own = cache.open(uri).manifest
    fields = ("tokenizer_sha256", "teacher", "revision", "packing", "temperatures", "vocabulary_size", "codec")
    assert len(cache.open(uri, **{name: getattr(own, name) for name in fields}))
    with pytest.raises(RequestError) as caught:
        cache.open(
            uri, tokenizer_sha256="1" * 64, packing="concatenate", temperatures=[3.0], revision="abc", codec="plain-1"
        )
    line = str(caught.value)
    for differs in (
        'packing: "none"',
        'tokenizer_sha256: "x", not "111',
        ", not [3.0]",
        'revision: nothing, not "abc"',
    ):
        assert differs in line
    assert "codec" not in line
    with pytest.raises(RequestError, match="has no tokeniser that could be expected"):
        cache.open(uri, tokeniser="x")


def test_an_unfinished_cache_is_inspected_and_not_opened(tmp_path: Path) -> None:
    store = finished_cache(tmp_path)
    manifest = CacheManifest.read(store)
    assert manifest is not None
    manifest.model_copy(update={"index": None, "bytes_by_part": None, "mean_kept_mass": None}).put(store)
    data = store.read(shard_name(1))
    parts = dict.fromkeys(PARTS, 0)
    entry = ShardEntry(1, 5, 20, len(data), sha256(data))
    Receipt(manifest.fingerprint, entry, parts, 18.0).put(store)
    Receipt("another", ShardEntry(0, 5, 20, 1, "x"), parts, 18.0).put(store)
    facts = inspect(store.uri)
    assert (facts["shards"], facts["missing_shards"], facts["positions"]) == (3, [0, 2], 20)
    assert facts["mean_kept_mass"] == pytest.approx(0.9)
    with pytest.raises(RequestError, match="unfinished cache; run `dkd cache` to finish it"):
        cache.open(store)


def test_no_cache_is_one_line(tmp_path: Path) -> None:
    for call in (cache.open, inspect):
        with pytest.raises(RequestError, match="holds no cache"):
            call(str(tmp_path))


def test_a_damaged_shard_is_named_when_it_is_read(tmp_path: Path) -> None:
    store = finished_cache(tmp_path)
    store.put(shard_name(1), store.read(shard_name(1))[:-9])
    opened = cache.open(store)
    opened[0]
    with pytest.raises(RequestError, match=r"shards/00000001\.arrow is damaged"):
        opened[6]
