"""Hidden states beside the targets: what goes in comes out, their bytes are told, a cache without is as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distributed_kd import cache
from distributed_kd.cache import hidden, shard
from distributed_kd.cache.inspect import inspect
from distributed_kd.cache.manifest import PARTS, CacheManifest, Receipt
from distributed_kd.cache.merge import merge
from distributed_kd.cache.verify import verify
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import Store
from tests.cache.caches import WIDTH, make_cache, make_rows

DTYPES = ("float16", "bfloat16", "float32")


@pytest.mark.parametrize("codec", ["plain-1", "compact-1"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_goes_in_comes_out_and_is_reported(tmp_path: Path, codec: str, dtype: str) -> None:
    store = Store(str(tmp_path))
    rows = make_cache(store, codec, hidden=dtype)
    found = cache.open(store)
    for row, expected in zip(found, rows, strict=True):
        assert row.targets.hidden is not None and expected.targets.hidden is not None
        assert row.targets.hidden.dtype == expected.targets.hidden.dtype
        np.testing.assert_array_equal(row.targets.hidden, expected.targets.hidden)
    facts = inspect(str(tmp_path))
    positions, size = facts["positions"], 4 if dtype == "float32" else 2
    assert facts["hidden"] == {"layer": -1, "dtype": dtype, "width": WIDTH}
    assert facts["bytes_by_part"].keys() == {*PARTS, "hidden"}
    assert facts["bytes_by_part"]["hidden"] > 0.7 * positions * WIDTH * size  # random numbers hardly compress
    assert sum(facts["bytes_by_part"].values()) == facts["bytes_total"]
    assert facts["bytes_per_position"] == facts["bytes_total"] / positions
    assert verify(str(tmp_path), jobs=1).all_good


def test_a_cache_without_them_says_nothing_of_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    make_cache(store, "plain-1")
    assert "hidden" not in json.loads(store.read("manifest.json"))
    receipt = Receipt.find(store, cache.open(store).fingerprint, 0)
    assert receipt is not None
    assert receipt.bytes_by_part.keys() == set(PARTS)
    assert "hidden" not in inspect(str(tmp_path))
    assert "hidden" not in inspect(str(tmp_path))["bytes_by_part"]


def test_a_shard_that_keeps_others_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    make_cache(store, "plain-1", hidden="float16")
    manifest = cache.open(store).manifest
    said = manifest.hidden
    assert said is not None
    for other in (None, said.model_copy(update={"width": WIDTH + 1}), said.model_copy(update={"dtype": "bfloat16"})):
        manifest.model_copy(update={"hidden": other}).put(store)
        with pytest.raises(RequestError, match=r"does not keep the hidden states that the manifest says"):
            cache.open(store)[0]


def test_numbers_that_are_not_finite_are_found(tmp_path: Path) -> None:
    for dtype, bits in (("float16", 0x7C00), ("bfloat16", 0x7FC0)):
        store = Store(str(tmp_path / dtype))
        make_cache(store, "plain-1", shards=1, hidden=dtype)
        rows = make_rows(0, 4, hidden=dtype)
        states = rows[2].targets.hidden
        assert states is not None
        states = states.copy()
        states.view(np.uint16)[0, 3] = bits
        rows[2] = replace(rows[2], targets=replace(rows[2].targets, hidden=states))
        manifest = cache.open(store).manifest
        _put(store, manifest, rows)
        (bad,) = verify(store, jobs=1).bad
        assert "a hidden state is not of finite numbers" in bad.reason


@pytest.mark.parametrize("kind", [pa.int32(), pa.list_(pa.float16()), pa.list_(pa.list_(pa.int8(), 2))])
def test_a_column_of_another_kind_is_refused(kind: pa.DataType) -> None:
    column = pa.array([None], kind)
    with pytest.raises(ValueError, match=r"column hidden is .*, not lists of fixed-width lists of floats"):
        hidden.decode({"hidden": column}, np.array([0]))


def test_they_have_no_mean(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_cache(Store(str(tmp_path / name)), "plain-1", hidden="float16")
    with pytest.raises(RequestError, match=r"keeps hidden states, which have no mean: capture without targets\.hidden"):
        merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "out"))


def _put(store: Store, manifest: CacheManifest, rows: list[shard.Row]) -> None:
    """As a writer that checks nothing."""
    from distributed_kd.cache.receipts import Receipts
    from distributed_kd.cache.writer import commit, put_rows

    receipts = Receipts(manifest.fingerprint, 1)
    receipts[0] = put_rows(store, manifest, 0, rows)
    commit(store, manifest, receipts)
