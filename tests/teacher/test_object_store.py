"""Logits never enter Ray's object store: by the store's own figures, over a whole capture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT, dkd, write_recipe
from tests.disturbed import shards_of

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[Any]:
    """One node on which nothing is too small for the store: Ray hands what has below 100 KB past it."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["PYTHONPATH"] = str(ROOT)
    from ray.cluster_utils import Cluster

    config = {"max_direct_call_object_size": 0}
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, "_system_config": config}
    )
    yield made
    made.shutdown()


def ever_created(cluster: Any) -> tuple[int, int]:
    """(objects, bytes) that its raylet's store has ever held."""
    from ray._private.internal_api import node_stats

    node = cluster.head_node
    stats = node_stats(node.node_ip_address, node.node_manager_port, include_memory_info=False).store_stats
    return stats.cumulative_created_objects, stats.cumulative_created_bytes


def test_what_a_capture_puts_into_the_object_store_are_receipts(
    cluster: Any, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    toy_recipe["corpus"] |= {"sequence_length": 32, "shard_sequences": 4}
    toy_recipe["targets"] = {"method": "full", "temperatures": [1.0, 2.0]}
    toy_recipe["capture"] |= {"address": cluster.address, "replicas": 2}
    recipe = write_recipe(tmp_path, toy_recipe)
    assert dkd("prepare", recipe).returncode == 0
    before = ever_created(cluster)
    done = dkd("cache", recipe)
    assert done.returncode == 0, done.stderr
    objects, size = (now - then for now, then in zip(ever_created(cluster), before, strict=True))
    shards = shards_of(Path(toy_recipe["workdir"]) / "cache")
    assert objects >= len(shards), "the store does not count what is small"
    # What a shard's targets take at their smallest, compressed; a receipt and a manifest are far below.
    smallest = min(map(len, shards.values()))
    assert size / len(shards) < smallest / 4, f"{size} bytes in {objects} objects for {len(shards)} shards"
