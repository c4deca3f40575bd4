"""The cache's manifest and receipts: what they may say, and what comes of those that say something else."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.cache import manifest
from distributed_kd.cache.manifest import (
    PARTS,
    CacheManifest,
    Receipt,
    made_from_of,
    put_tables,
    read_entries,
    read_tables,
)
from distributed_kd.cache.receipts import Receipts
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Recipe
from distributed_kd.store.digest import fingerprint, seal, sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import IndexReference, ShardEntry, put_index

PARTS_OF_ONE = {part: place for place, part in enumerate(PARTS)}
RECEIPT = Receipt("key", ShardEntry(3, 4, 5, 6, "a" * 64), PARTS_OF_ONE, 2.5)


def made(**changes: Any) -> dict[str, Any]:
    """The fields of a good manifest."""
    fields = {
        "format": "dkd-cache", "version": 1, "made_from": {}, "fingerprint": fingerprint({}), "codec": "plain-1",
        "teacher": "t", "revision": None, "tokenizer_sha256": "x", "vocabulary_size": 30, "packing": "none",
        "method": "top_k", "k": 4, "temperatures": [1.0], "shards": 3, "tables": None, "index": None,
        "bytes_by_part": None, "mean_kept_mass": None,
    }  # fmt: skip
    return fields | changes


def read(folder: Path, **changes: Any) -> CacheManifest:
    store = Store(str(folder))
    store.put("manifest.json", json.dumps(made(**changes)).encode())
    found = CacheManifest.read(store)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("field", "inside", "outside"),
    [
        ("codec", ["", "x" * 64], ["x" * 65, 1, None]),
        ("vocabulary_size", [1, 1 << 31], [0, (1 << 31) + 1, 1.5]),
        ("k", [1, 1 << 31], [0, (1 << 31) + 1]),
        ("shards", [0, 1 << 22], [-1, (1 << 22) + 1]),
        ("temperatures", [[5e-324], [1.0] * 64], [[], [1.0] * 65, [0.0], [-1.0], ["inf"]]),
        ("packing", ["concatenate", "isolate"], ["other"]),
        ("method", ["top_p", "sample", "full"], ["other"]),
        ("mean_kept_mass", [0.5, None], [float("nan"), float("inf")]),
        ("index", [{"sha256": "x", "bytes": 1}], [{"sha256": "x"}, {}, 1]),
    ],
)
def test_fields_are_within_their_limits(tmp_path: Path, field: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        found = read(tmp_path, **{field: value})
        found.put(Store(str(tmp_path)))
        assert CacheManifest.read(Store(str(tmp_path))) == found
    for value in outside:
        with pytest.raises(RequestError, match="not a manifest this version reads"):
            read(tmp_path, **{field: value})
    with pytest.raises(RequestError, match="not a manifest this version reads"):
        read(tmp_path, surprise=1)


def test_the_teachers_identity_is_said_or_refused(tmp_path: Path) -> None:
    identity = {"config_sha256": "c", "weights_sha256": "w"}
    for teacher in (None, 1, [], "text", {"config_sha256": "c"}, {"teacher": identity}):
        made_from = {} if teacher is None else {"teacher": teacher}
        with pytest.raises(RequestError, match="does not say which teacher's files"):
            read(tmp_path, made_from=made_from, fingerprint=fingerprint(made_from)).teacher_identity  # noqa: B018
    made_from = {"teacher": identity | {"model": "m"}}
    assert read(tmp_path, made_from=made_from, fingerprint=fingerprint(made_from)).teacher_identity == identity


def test_a_cache_is_made_from_what_its_bytes_depend_on() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "toy", "workdir": "w", "corpus": {"source": "c", "sequence_length": 16},
            "teachers": [{"model": "m", "dtype": "float32"}], "targets": {"k": 8, "temperatures": [1.0, 2.0]},
            "student": {"model": "s"}, "trainer": {"processes": 1, "global_batch": 8, "steps": 6, "learning_rate": 0.1},
        }
    )  # fmt: skip
    found = made_from_of(recipe, "sequences", {"config_sha256": "c", "weights_sha256": "w"})
    assert found["sequences"] == "sequences"
    assert found["teacher"] == {
        "model": "m", "revision": None, "dtype": "float32", "config_sha256": "c", "weights_sha256": "w",
    }  # fmt: skip
    assert (found["targets"]["k"], found["targets"]["temperatures"]) == (8, [1.0, 2.0])
    assert found["capture"].keys() == {"batch_tokens", "head_chunk", "threads", "codec", "table_positions"}


def test_an_index_lists_the_shards_that_the_manifest_has(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    reference = put_index(store, [replace(RECEIPT.entry, shard=number) for number in range(3)])
    found = read(tmp_path, index=asdict(reference))
    assert [entry.shard for entry in read_entries(store, found)] == [0, 1, 2]
    for shards in (2, 4):
        with pytest.raises(RequestError, match=f"lists 3 shards, the manifest has {shards}"):
            read_entries(store, read(tmp_path, index=asdict(reference), shards=shards))


def test_code_tables_are_the_ones_that_are_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    reference = put_tables(store, b"tables")
    assert reference == IndexReference(sha256(b"tables"), 6)
    assert read_tables(store, reference) == b"tables"
    for size in (-1, (1 << 28) + 1):
        with pytest.raises(RequestError, match=f"says its code tables have {size} bytes; they cannot"):
            read_tables(store, replace(reference, bytes=size))
    for size in (0, 1 << 28):
        with pytest.raises(RequestError, match="damaged"):
            read_tables(store, replace(reference, bytes=size))
    store.put("tables.bin", b"")
    assert read_tables(store, IndexReference(sha256(b""), 0)) == b""


def test_receipts_come_back_under_their_numbers(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    others = [RECEIPT, replace(RECEIPT, entry=replace(RECEIPT.entry, shard=7)), replace(RECEIPT, fingerprint="other")]
    for number, receipt in enumerate(others):
        receipt = replace(receipt, entry=replace(receipt.entry, shard=receipt.entry.shard + (number == 2)))
        receipt.put(store)
    assert store.list("receipts") == ["00000003.json", "00000004.json", "00000007.json"]
    expected = {3: others[0], 7: others[1]}
    assert Receipts.read_all(store, "key", 8) == Receipts.read_good(store, "key", 8) == expected
    assert list(Receipts.read_all(store, "other", 8)) == [4]


def sealed(**changes: Any) -> bytes:
    return json.dumps(seal(asdict(RECEIPT) | changes)).encode()


def entry(**changes: Any) -> dict[str, Any]:
    return asdict(RECEIPT.entry) | changes


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"1", b"{}", b"[" * 100_000, sealed(surprise=1), sealed(kept_mass="much"),
        json.dumps(asdict(RECEIPT) | {"kept_mass": float("nan")}).encode(),
        json.dumps(asdict(RECEIPT) | {"kept_mass": float("inf")}).encode(),
        sealed(bytes_by_part={}), sealed(bytes_by_part=PARTS_OF_ONE | {"more": 1}), sealed(entry=entry(rows=-1)),
        sealed(entry=entry(sha256="x")), sealed(entry=entry(shard=4)), sealed().replace(b"2.5", b"2.6"),
        b" " * (1 << 16) + sealed(),
    ],
)  # fmt: skip
def test_what_is_no_receipt_is_refused_or_as_if_it_were_not_there(tmp_path: Path, data: bytes) -> None:
    store = Store(str(tmp_path))
    store.put("receipts/00000003.json", data)
    with pytest.raises(RequestError, match=r"receipts/00000003\.json"):
        Receipts.read_all(store, "key", 8)
    assert Receipts.read_good(store, "key", 8) == {}


def test_a_receipt_may_have_no_seal_and_be_as_long_as_it_may(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    data = json.dumps(asdict(RECEIPT)).encode()
    store.put("receipts/00000003.json", data + b" " * ((1 << 16) - len(data)))
    assert Receipts.read_all(store, "key", 8) == {3: RECEIPT}
    assert manifest.MAXIMUM_RECEIPT_BYTES == 1 << 16


def test_what_is_left_out_is_said_only_where_there_is_some(tmp_path: Path) -> None:
    """So that receipts and manifests of other caches are the bytes that they were."""
    some = replace(RECEIPT, left_out=[7, 9])
    assert Receipt.parse(some.to_bytes(), "") == some
    assert b"left_out" not in RECEIPT.to_bytes()
    found = read(tmp_path, left_out=[7, 9])
    assert found.left_out == [7, 9] and found.model_dump()["left_out"] == [7, 9]
    assert "left_out" not in read(tmp_path).model_dump()


def test_totals_are_sums_whatever_the_order() -> None:
    second = replace(RECEIPT, entry=replace(RECEIPT.entry, shard=1, positions=15), kept_mass=7.5)

    def totals(receipts: list[Receipt]) -> tuple[dict[str, int], float]:
        found = Receipts("key", 8)
        found.update({receipt.entry.shard: receipt for receipt in receipts})
        return found.bytes_by_part, found.mean_kept_mass

    parts, mass = totals([RECEIPT, second])
    assert parts == {part: 2 * size for part, size in PARTS_OF_ONE.items()}
    assert mass == 10 / 20
    assert totals([second, RECEIPT]) == (parts, mass)
    assert totals([]) == (dict.fromkeys(PARTS, 0), 0.0)
    tiny = [replace(RECEIPT, entry=replace(RECEIPT.entry, shard=n), kept_mass=m) for n, m in enumerate((0.1, 0.2, 0.3))]
    assert totals(tiny)[1] == totals(tiny[::-1])[1]
