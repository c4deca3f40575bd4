"""The simulation of `benchmarks/scale.py`, small and much disturbed: it ends, with every shard done once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.cache.manifest import CacheManifest
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import read_index

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale.py"


@pytest.fixture(scope="module")
def scale() -> Any:
    spec = importlib.util.spec_from_file_location("scale", _SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["scale"] = importlib.util.module_from_spec(spec)  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [1, 2])
def test_many_losses_and_a_store_that_refuses(scale: Any, tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    world = scale.World(shards=2000, replicas=50, life=0.5, puts=2, seed=seed)
    row = scale.simulate(world, str(tmp_path))  # asserts that each shard was done once
    assert row["lost_replicas"] > 60
    assert row["refused_puts"] > 100
    assert row["peak_puts_per_second"] == 2
    assert 0.3 < row["teacher_share"] < 0.95
    store = Store(str(tmp_path))
    assert row["receipt_files"] == len(store.list("receipts")) == 2
    manifest = CacheManifest.read(store)
    assert manifest is not None and manifest.index is not None
    assert [entry.shard for entry in read_index(store, manifest.index)] == list(range(2000))


def test_an_undisturbed_fleet_is_in_the_teacher_but_for_its_ends(scale: Any, tmp_path: Path) -> None:
    world = scale.World(shards=2000, replicas=20, life=1e9)
    row = scale.simulate(world, str(tmp_path))
    assert row["lost_replicas"] == row["refused_puts"] == 0
    seconds = 86400.0 * row["days"]
    loading, end = world.load / seconds, 1.5 * world.forward / seconds
    assert 1.0 - loading - end < row["teacher_share"] < 1.0 - loading
