"""A cache's receipts as columns, and their files: single, folded, and whatever lies between."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.cache import receipts as module
from distributed_kd.cache.manifest import PARTS, ErrorBound, Receipt
from distributed_kd.cache.receipts import Receipts
from distributed_kd.errors import RequestError, Stopped
from distributed_kd.launch.stop import stopped_by_sigterm
from distributed_kd.recipe import Recipe, parse
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import LIMITS, ShardEntry, ShardIndex
from tests.store.killing import kills, steps_of

KEY = "f" * 64
SHARDS = 8  # two groups of three, and two shards that make up no group
GROUPS = ["00000000-00000002.jsonl", "00000003-00000005.jsonl"]
SINGLES = ["00000006.json", "00000007.json"]


@pytest.fixture(autouse=True)
def groups_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP", 3)


def receipt(shard: int, seed: int = 0) -> Receipt:
    drawn = random.Random(1000 * seed + shard)
    entry = ShardEntry(shard, drawn.randrange(300), drawn.randrange(1 << 20), drawn.randrange(1 << 30), f"{seed:064x}")
    return Receipt(KEY, entry, {part: drawn.randrange(1 << 28) for part in PARTS}, 1e6 * drawn.random())


def put_all(store: Store, shards: list[int]) -> Receipts:
    """As a capture that finishes them in this order, without folding."""
    receipts = Receipts(KEY, SHARDS)
    for shard in shards:
        receipt(shard).put(store)
        receipts[shard] = receipt(shard)
    return receipts


def bound(mean: float) -> ErrorBound:
    return ErrorBound([mean, 0.5], [1.0, 2.0])


def test_what_is_put_in_comes_out_rising_by_shard() -> None:
    largest = replace(
        receipt(5),
        entry=ShardEntry(5, LIMITS["rows"], LIMITS["positions"], LIMITS["bytes"], "ab" * 32),
        bytes_by_part=dict.fromkeys(PARTS, LIMITS["bytes"]),
        error_bound=bound(0.25),
        left_out=[70, 71],
    )
    put = [receipt(7), receipt(2), largest, receipt(0)]
    receipts = Receipts(KEY, SHARDS)
    receipts[2] = replace(receipt(2), left_out=[20])
    for one in put:
        receipts[one.entry.shard] = one
    assert receipts.left_out == [70, 71]
    ordered = sorted(put, key=lambda one: one.entry.shard)
    assert list(receipts.items()) == [(one.entry.shard, one) for one in ordered]
    assert list(receipts.entries) == [one.entry for one in ordered]
    assert [column.tolist() if hasattr(column, "tolist") else column for column in receipts.entries.columns[:4]] == [
        column.tolist() for column in ShardIndex.of(one.entry for one in put).columns[:4]
    ]
    assert receipts.entries.sha256.equals(ShardIndex.of(one.entry for one in put).sha256)
    assert receipts.missing.tolist() == [1, 3, 4, 6]
    assert receipts.bytes_by_part == {part: sum(one.bytes_by_part[part] for one in put) for part in PARTS}
    positions = sum(one.entry.positions for one in put)
    assert receipts.mean_kept_mass == sum(one.kept_mass for one in ordered) / positions  # in this order, to the bit
    del receipts[5]
    assert receipts.left_out == []
    receipts[7] = receipt(7, seed=1)
    assert list(receipts.items()) == [(0, put[3]), (2, put[1]), (7, receipt(7, seed=1))]
    assert 5 not in receipts and -1 not in receipts and SHARDS not in receipts
    with pytest.raises(KeyError):
        receipts[5]


def test_whole_groups_are_folded_the_same_whatever_the_order(tmp_path: Path) -> None:
    contents = []
    for seed in range(3):
        store = Store(str(tmp_path / str(seed)))
        receipts = Receipts(KEY, SHARDS)
        for shard in random.Random(seed).sample(range(SHARDS), SHARDS):
            receipt(shard).put(store)
            receipts[shard] = receipt(shard)
            receipts.fold(store)
        assert store.list("receipts") == sorted(GROUPS + SINGLES)
        contents.append([store.read(f"receipts/{name}") for name in store.list("receipts")])
        expected = {shard: receipt(shard) for shard in range(SHARDS)}
        for read in (Receipts.read_all, Receipts.read_good):
            again = read(store, KEY, SHARDS)
            assert again == expected
            again.fold(store)
        assert [store.read(f"receipts/{name}") for name in store.list("receipts")] == contents[-1]
    assert contents[0] == contents[1] == contents[2]


def test_a_driver_that_finds_single_files_folds_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    put_all(store, [0, 1, 2, 3, 5, 7])
    assert len(store.list("receipts")) == 6
    receipts = Receipts.read_all(store, KEY, SHARDS)
    receipts.fold(store)
    assert store.list("receipts") == [GROUPS[0], "00000003.json", "00000005.json", "00000007.json"]
    assert list(Receipts.read_all(store, KEY, SHARDS)) == [0, 1, 2, 3, 5, 7]


def test_a_shard_that_a_repair_did_again_counts_before_its_line(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    put_all(store, [*range(SHARDS)]).fold(store)
    again = receipt(1, seed=1)
    receipts = Receipts.read_good(store, KEY, SHARDS)
    del receipts[1]
    receipts.fold(store)
    again.put(store)
    expected = {shard: receipt(shard) for shard in range(SHARDS)} | {1: again}
    assert Receipts.read_all(store, KEY, SHARDS) == expected
    receipts[1] = again
    receipts.fold(store)
    assert store.list("receipts") == sorted(GROUPS + SINGLES)
    assert Receipts.read_all(store, KEY, SHARDS) == expected


def test_a_reader_misses_nothing_that_is_folded_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    receipts = put_all(store, [*range(SHARDS)])
    listed = Store.list

    def list_and_fold(self: Store, folder: str) -> list[str]:
        names = listed(self, folder)
        receipts.fold(store)
        return names

    monkeypatch.setattr(Store, "list", list_and_fold)
    assert list(Receipts.read_all(store, KEY, SHARDS)) == [*range(SHARDS)]
    assert listed(store, "receipts") == sorted(GROUPS + SINGLES)


def test_a_driver_killed_at_any_step_of_folding_loses_no_receipt(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "cache"))

    def begin() -> Receipts:
        shutil.rmtree(store.root, ignore_errors=True)
        return put_all(store, [*range(SHARDS)])

    receipts = begin()
    one_group = ["open", "write", "flush", "fsync", "replace", "fsync", *["remove"] * 3]
    assert steps_of(lambda: receipts.fold(store)) == one_group * 2
    begin()
    for place in kills(lambda: receipts.fold(store), one_group * 2):
        for read in (Receipts.read_all, Receipts.read_good):
            assert list(read(store, KEY, SHARDS)) == [*range(SHARDS)], place
        Receipts.read_all(store, KEY, SHARDS).fold(store)
        assert store.list("receipts") == sorted(GROUPS + SINGLES), place
        begin()


def test_a_store_that_fails_is_told_of_and_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    lines: list[str] = []
    monkeypatch.setattr(module.console, "say", lines.append)
    receipts = put_all(store, [0, 1, 2])

    def slow_down(path: str) -> None:
        raise OSError("slow down, http://user:pass@host/b")

    with monkeypatch.context() as failing:
        failing.setattr(os, "remove", slow_down)
        receipts.fold(store)
        receipts.fold(store)
    [line] = lines
    assert line.startswith("cache: the receipts of shards 0 to 2 stay single files: ")
    assert "slow down, http://***@host/b" in line and "pass" not in line
    assert list(Receipts.read_all(store, KEY, SHARDS)) == [0, 1, 2]
    for shard in (3, 4, 5):
        receipt(shard).put(store)
        receipts[shard] = receipt(shard)
    receipts.fold(store)
    assert store.list("receipts") == GROUPS


def test_a_stop_that_comes_while_receipts_are_folded_is_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    receipts = put_all(store, [0, 1, 2])

    def stopped(self: Store, name: str, data: bytes) -> None:
        raise Stopped("stopped by SIGTERM")

    def told(self: Store, name: str, data: bytes) -> None:
        signal.raise_signal(signal.SIGTERM)

    for put in (stopped, told):
        with monkeypatch.context() as stopping:
            stopping.setattr(Store, "put", put)
            with pytest.raises(Stopped, match="SIGTERM"), stopped_by_sigterm():
                receipts.fold(store)
        receipts._is_due = True
    receipts.fold(store)
    assert store.list("receipts") == GROUPS[:1]


@pytest.mark.parametrize(
    ("change", "line", "left"),
    [
        (lambda data: data[:-9], ", line 3, is not a receipt", [0, 1]),
        (lambda data: data.replace(b'"rows": ', b'"rows": 1', 1), ", line 1, is not a receipt, or damaged", [1, 2]),
        (lambda data: data[: data.rindex(b"\n")], "has 2 of 3 receipts", [0, 1]),
        (lambda data: b"", "has 0 of 3 receipts", []),
        (lambda data: data.replace(receipt(1).to_bytes(), receipt(4).to_bytes()), "is the receipt of shard 4", [0, 2]),
        (lambda data: data.replace(KEY.encode(), b"0" * 64), "", []),
    ],
)
def test_a_group_that_is_damaged_is_refused_or_its_good_lines_count(
    tmp_path: Path, change: Callable[[bytes], bytes], line: str, left: list[int]
) -> None:
    store = Store(str(tmp_path))
    put_all(store, [0, 1, 2]).fold(store)
    name = f"receipts/{GROUPS[0]}"
    data = change(store.read(name))
    if not line:  # another fingerprint's, sealed as it should be
        data = b"\n".join(replace(receipt(shard), fingerprint="0" * 64).to_bytes() for shard in (0, 1, 2))
    store.put(name, data)
    if line:
        with pytest.raises(RequestError, match=GROUPS[0]) as caught:
            Receipts.read_all(store, KEY, SHARDS)
        assert line in str(caught.value) and "delete it" in str(caught.value)
    else:
        assert Receipts.read_all(store, KEY, SHARDS) == {}
    assert list(Receipts.read_good(store, KEY, SHARDS)) == left


@pytest.mark.parametrize("name", ["00000001-00000003.jsonl", "00000006-00000008.jsonl", "other.json", "99999999.json"])
def test_a_file_of_another_name_is_refused(tmp_path: Path, name: str) -> None:
    store = Store(str(tmp_path))
    store.put(f"receipts/{name}", b"\n".join(receipt(0).to_bytes() for _ in range(3 if name.endswith("l") else 1)))
    with pytest.raises(RequestError, match=f"{name}.* is the receipt of shard 0; delete it"):
        Receipts.read_all(store, KEY, SHARDS)
    assert Receipts.read_good(store, KEY, SHARDS) == {}


@pytest.mark.slow
def test_in_a_bucket(bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    store = Store("s3://bucket/receipts-of-a-cache")
    put_all(store, [0, 1, 2, 3, 5, 7])
    store.put("receipts/00000004.json", b"")  # which no range can be read of
    with pytest.raises(RequestError, match=r"00000004\.json is not a receipt"):
        Receipts.read_all(store, KEY, SHARDS)
    receipts = Receipts.read_good(store, KEY, SHARDS)
    assert receipts == {shard: receipt(shard) for shard in (0, 1, 2, 3, 5, 7)}
    receipts.fold(store)
    assert store.list("receipts") == [GROUPS[0], *(f"0000000{number}.json" for number in (3, 4, 5, 7))]
    assert Receipts.read_good(store, KEY, SHARDS) == receipts


@pytest.mark.slow
def test_a_capture_that_folds_is_the_same_cache_and_is_resumed_and_repaired(
    ray_cluster: Any, toy_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed_kd.corpus.prepare import prepare
    from distributed_kd.teacher.capture import capture
    from distributed_kd.teacher.repair import repair

    toy_recipe["corpus"]["shard_sequences"] = 4

    def cache_of(name: str) -> tuple[Recipe, Path]:
        recipe = parse({**toy_recipe, "workdir": str(tmp_path / name)})
        prepare(recipe)
        return recipe, tmp_path / name / "cache"

    def content(folder: Path) -> dict[str, bytes]:
        files = [folder / "manifest.json", folder / "index.arrow", *sorted((folder / "shards").iterdir())]
        return {path.name: path.read_bytes() for path in files}

    folded, folder = cache_of("folded")
    shards = capture(folded).shards
    groups = [f"{first:08d}-{first + 2:08d}.jsonl" for first in range(0, shards // 3 * 3, 3)]
    singles = [f"{number:08d}.json" for number in range(shards // 3 * 3, shards)]
    assert len(groups) > 3
    assert sorted(path.name for path in (folder / "receipts").iterdir()) == sorted(groups + singles)
    undisturbed = content(folder)

    # Unfinished again, and what a whole group says lost with its shards: those alone are done again.
    unfinished = json.loads(undisturbed["manifest.json"])
    del unfinished["sha256"]
    (folder / "manifest.json").write_text(json.dumps(unfinished | {"index": None}))
    (folder / "index.arrow").unlink()
    (folder / "receipts" / groups[1]).unlink()
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "shards").iterdir()}
    assert capture(folded).index is not None
    assert content(folder) == undisturbed
    again = [path.name for path in (folder / "shards").iterdir() if path.stat().st_mtime_ns != times[path.name]]
    assert sorted(again) == ["00000003.arrow", "00000004.arrow", "00000005.arrow"]
    assert sorted(path.name for path in (folder / "receipts").iterdir()) == sorted(groups + singles)

    (folder / "shards" / "00000001.arrow").write_bytes(b"damaged")
    (folder / "index.arrow").unlink()
    assert repair(folded).shards == [1]
    assert content(folder) == undisturbed

    monkeypatch.setattr(module, "GROUP", 1000)
    single, other = cache_of("single")
    capture(single)
    assert len(list((other / "receipts").iterdir())) == shards
    assert content(other) == undisturbed
