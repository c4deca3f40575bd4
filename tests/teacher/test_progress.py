"""What a running capture says of itself: beside the bar, and to Prometheus over HTTP."""

from __future__ import annotations

import time
import urllib.request
from typing import Any

import pytest

from distributed_kd.cache.manifest import Receipt
from distributed_kd.corpus.prepare import prepare
from distributed_kd.recipe import parse
from distributed_kd.store.index import ShardEntry
from distributed_kd.teacher import capture as stage
from distributed_kd.teacher.progress import GAUGES, Progress


def receipt(shard: int, positions: int, size: int) -> Receipt:
    return Receipt("f", ShardEntry(shard, 4, positions, size, "0" * 64), {}, 1.0, None)


def test_rates_are_of_this_run_and_what_was_there_counts_as_done(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(shards=10, positions=1000, shards_done=4, positions_done=400, _begun=50.0)
    monkeypatch.setattr(time, "monotonic", lambda: 60.0)
    assert progress.seconds_left == float("inf")
    progress.add(receipt(7, 100, 8000))
    progress.add(receipt(8, 100, 9000))
    progress.replicas = 3
    assert progress.note() == "6 of 10 shards, 20 positions/s, 85 bytes a position, 3 replicas"
    assert progress.seconds_left == 20.0
    progress.failures = 2
    assert progress.note().endswith("3 replicas, 2 failures")


@pytest.mark.slow
def test_prometheus_reads_the_same_numbers(ray_cluster: Any, toy_recipe: dict[str, Any]) -> None:
    recipe = parse(toy_recipe)
    prepare(recipe)
    manifest = stage.capture(recipe)
    node = ray_cluster.nodes()[0]
    found: dict[str, float] = {}
    deadline = time.monotonic() + 60.0
    while len(found) < len(GAUGES) and time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        own = [line for line in lines if f'cache="{recipe.workdir}/cache"' in line]
        found = {line.split("{")[0].removeprefix("ray_dkd_capture_"): float(line.split()[-1]) for line in own}
        time.sleep(0.5)
    assert found.keys() == GAUGES.keys()
    assert manifest.index is not None
    assert (found["shards"], found["shards_done"]) == (manifest.shards, manifest.shards)
    assert found["replicas"] == 1.0
    assert found["failures"] == found["seconds_left"] == 0.0
    assert found["bytes_per_position"] > 10.0
