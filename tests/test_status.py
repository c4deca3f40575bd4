"""`dkd status` on workdirs that are not there, begun and done; the whole line's is in tests/test_pipeline.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_kd.cache.manifest import PARTS, CacheManifest, Receipt
from distributed_kd.errors import RequestError
from distributed_kd.status import status
from distributed_kd.store.digest import sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, shard_name
from tests.cache.test_shard import finished_cache


def test_a_workdir_of_nothing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no stage of a distillation"):
        status(str(tmp_path))


def test_a_capture_and_a_training_in_work(tmp_path: Path) -> None:
    store = finished_cache(tmp_path)
    found = status(str(tmp_path))["stages"]
    assert (found["cache"]["state"], found["cache"]["shards_done"]) == ("done", 3)
    assert {found[name]["state"] for name in ("prepare", "student", "baseline", "evaluate")} == {"absent"}

    manifest = CacheManifest.read(store)
    assert manifest is not None
    manifest.model_copy(update={"index": None, "bytes_by_part": None, "mean_kept_mass": None}).put(store)
    data = store.read(shard_name(1))
    Receipt(manifest.fingerprint, ShardEntry(1, 5, 20, len(data), sha256(data)), dict.fromkeys(PARTS, 0), 18.0).put(
        store
    )
    arm = Store(str(tmp_path / "student"))
    arm.put("recipe.yaml", b"name: x\n")
    found = status(str(tmp_path))["stages"]
    assert (found["cache"]["state"], found["cache"]["shards"], found["cache"]["shards_done"]) == ("begun", 3, 1)
    assert found["student"] == {"state": "begun", "last_checkpoint": None}
    for name in ("step-00000004.json", "step-00000012.json", "step-00000016/half"):
        arm.put(f"checkpoints/{name}", b"{}")
    assert status(str(tmp_path))["stages"]["student"] == {"state": "begun", "last_checkpoint": 12}
