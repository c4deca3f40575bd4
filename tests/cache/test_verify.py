"""dkd verify: every byte, each bad or missing shard named with why, finished or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distributed_kd import cache
from distributed_kd.cache import shard
from distributed_kd.cache.manifest import CacheManifest
from distributed_kd.cache.receipts import Receipts
from distributed_kd.cache.shard import Row
from distributed_kd.cache.verify import Bad, verify
from distributed_kd.errors import RequestError
from distributed_kd.store.digest import sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, put_index, shard_name, table_bytes
from tests.cache.caches import make_cache, make_rows
from tests.commands import dkd, said

CODECS = ["plain-1", "compact-1"]


@pytest.mark.parametrize("codec", CODECS)
def test_a_good_cache_is_good_by_any_number_of_processes(tmp_path: Path, codec: str) -> None:
    store = Store(str(tmp_path))
    make_cache(store, codec, shards=4)
    for jobs in (1, 2):
        found = verify(store, jobs)
        assert (found.shards, found.good, found.bad, found.missing) == (4, 4, [], [])
        assert found.bytes == sum(len(store.read(shard_name(number))) for number in range(4))
        assert found.facts().keys() == {"shards", "good", "bad", "missing", "bytes", "seconds", "megabytes_per_second"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_bad_and_missing_shards_are_named(tmp_path: Path, jobs: int) -> None:
    store = Store(str(tmp_path))
    make_cache(store, "compact-1", shards=5)
    good = store.read(shard_name(1))
    store.put(shard_name(1), good[:200] + bytes([good[200] ^ 4]) + good[201:])
    store.put(shard_name(4), good)
    store.delete(shard_name(3))
    found = verify(store, jobs)
    assert (found.good, found.missing) == (2, [3])
    assert [(one.shard, one.file) for one in found.bad] == [(1, shard_name(1)), (4, shard_name(4))]
    assert all("damaged" in one.reason and "\n" not in one.reason for one in found.bad)


def test_an_unfinished_cache_is_checked_by_its_receipts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    make_cache(store, "compact-1", shards=4)
    manifest = CacheManifest.read(store)
    assert manifest is not None
    manifest.model_copy(update={"index": None}).put(store)
    store.delete("index.arrow")
    store.delete("receipts/00000002.json")
    store.put("receipts/00000001.json", b'{"fingerprint": 7')
    found = verify(store, 1)
    assert (found.shards, found.good, found.bad, found.missing) == (4, 2, [], [1, 2])


def test_lost_tables_and_a_lost_index_are_named_and_shards_still_checked(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    make_cache(store, "compact-1")
    store.delete("tables.bin")
    store.put("index.arrow", b"x" * 100)
    store.delete(shard_name(0))
    found = verify(store, 1)
    assert {one.file for one in found.bad} == {"tables.bin", "index.arrow"}
    assert (found.good, found.missing) == (2, [0])


def rewritten(store: Store, row: Row, change: str) -> str:
    """What verify says of a cache whose first shard was written, digests and all, with a wrong row in it."""
    manifest = CacheManifest.read(store)
    assert manifest is not None
    rows = make_rows(0, 3)
    rows.append(row)
    data, _ = shard.encode(rows, "plain-1", manifest.fingerprint, 0)
    store.put(shard_name(0), data)
    entries = [ShardEntry(0, 4, sum(len(one.targets) for one in rows), len(data), sha256(data))]
    entries += list(Receipts.read_all(store, manifest.fingerprint, manifest.shards).entries)[1:]
    manifest.model_copy(update={"index": put_index(store, entries)}).put(store)
    (bad,) = verify(store, 1).bad
    assert (bad.shard, bad.file) == (0, shard_name(0)), change
    return bad.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("a byte", "is damaged: its digest is"),
        ("an end", "bytes are there"),
        ("rows", "has 4 rows, the index says 5"),
        ("positions", "positions, the index says 1"),
        ("codec", "was written with codec 'compact-1', the manifest says 'plain-1'"),
        ("place", "says it is shard 2"),
        ("columns", "there is no column input_ids"),
    ],
)
def test_verify_says_of_a_shard_what_reading_it_says(tmp_path: Path, change: str, reason: str) -> None:
    store = Store(str(tmp_path))
    make_cache(store, "plain-1")
    manifest = CacheManifest.read(store)
    assert manifest is not None
    entries = list(Receipts.read_all(store, manifest.fingerprint, manifest.shards).entries)
    data = store.read(shard_name(1))
    if change == "a byte":
        store.put(shard_name(1), data[:300] + bytes([data[300] ^ 1]) + data[301:])
    elif change == "an end":
        store.put(shard_name(1), data[:-1])
    elif change in ("rows", "positions"):
        entries[1] = replace(entries[1], **{change: {"rows": 5, "positions": 1}[change]})
    else:
        table = pa.ipc.open_file(data).read_all()
        metadata = {**(table.schema.metadata or {})}
        if change == "codec":
            metadata[b"codec"] = b"compact-1"
        elif change == "place":
            metadata[b"shard"] = b"2"
        else:
            table = table.drop_columns("input_ids")
        data = table_bytes(table.replace_schema_metadata(metadata))
        store.put(shard_name(1), data)
        entries[1] = replace(entries[1], bytes=len(data), sha256=sha256(data))
    manifest.model_copy(update={"index": put_index(store, entries)}).put(store)
    with pytest.raises(RequestError, match=reason) as caught:
        cache.open(store).read_shard(1)
    (bad,) = verify(store, 1).bad
    assert bad == Bad(1, shard_name(1), str(caught.value))
    assert f"{store.uri}/{shard_name(1)}" in bad.reason


@pytest.mark.parametrize(
    ("change", "value", "said"),
    [
        ("ids", 300, "a kept id is not of a vocabulary of 300"),
        ("ids", -2, "a kept id is not of a vocabulary"),
        ("twice", 0, "keeps an id twice"),
        ("logits", np.nan, "a logit is not a number"),
        ("logits", 1.0, "above the largest"),
        ("tail_odds", np.nan, "tail odds are not numbers"),
        ("tail_odds", np.inf, "tail odds are not numbers"),
        ("input_ids", 300, "an input id is not of a vocabulary"),
    ],
)
def test_what_a_writer_got_wrong_is_found_behind_a_right_digest(
    tmp_path: Path, change: str, value: float, said: str
) -> None:
    store = Store(str(tmp_path))
    make_cache(store, "plain-1")
    row = make_rows(3, 1)[0]
    if change == "input_ids":
        row.sequence.input_ids[0] = value
    elif change == "twice":
        row.targets.ids[0, 1] = row.targets.ids[0, 0]
    else:
        getattr(row.targets, change)[0, 0 if change == "tail_odds" else 1] = value
    assert said in rewritten(store, row, change)


def test_the_command_exits_0_1_and_2(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "cache"))
    make_cache(store, "plain-1")
    done = dkd("verify", store.uri, "--json", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["good"] == 3
    store.put(shard_name(1), b"nothing")
    store.delete(shard_name(2))
    done = dkd("verify", store.uri, "--jobs", "1")
    assert done.returncode == 1
    assert "bad: shards/00000001.arrow: " in done.stdout
    assert "missing: shards/00000002.arrow" in done.stdout
    assert "1 bad, 1 missing; " in said(done)
    done = dkd("verify", tmp_path)
    assert done.returncode == 2
    assert "holds no cache" in said(done)
    with pytest.raises(RequestError, match="holds no cache"):
        verify(str(tmp_path))
