"""`dkd status` on workdirs that are not there, begun and done; the whole line's is in tests/test_pipeline.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_kd.cache.manifest import PARTS, CacheManifest, Receipt
from distributed_kd.errors import RequestError
from distributed_kd.recipe.whole import member_folder
from distributed_kd.status import status
from distributed_kd.store.digest import sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, shard_name
from tests.cache.test_shard import finished_cache


def unfinished(folder: Path) -> None:
    """Two of the cache's three shards are still to come."""
    store = finished_cache(folder)
    manifest = CacheManifest.read(store)
    assert manifest is not None
    manifest.model_copy(update={"index": None, "bytes_by_part": None, "mean_kept_mass": None}).put(store)
    data = store.read(shard_name(1))
    entry = ShardEntry(1, 5, 20, len(data), sha256(data))
    Receipt(manifest.fingerprint, entry, dict.fromkeys(PARTS, 0), 18.0).put(store)


def test_a_workdir_of_nothing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no stage of a distillation"):
        status(str(tmp_path))


def test_a_capture_and_a_training_in_work(tmp_path: Path) -> None:
    finished_cache(tmp_path)
    found = status(str(tmp_path))["stages"]
    assert (found["cache"]["state"], found["cache"]["shards_done"]) == ("done", 3)
    assert {found[name]["state"] for name in ("prepare", "student", "baseline", "evaluate")} == {"absent"}

    unfinished(tmp_path)
    arm = Store(str(tmp_path / "student"))
    arm.put("recipe.yaml", b"name: x\n")
    found = status(str(tmp_path))["stages"]
    assert (found["cache"]["state"], found["cache"]["shards"], found["cache"]["shards_done"]) == ("begun", 3, 1)
    assert found["student"] == {"state": "begun", "last_checkpoint": None}
    for name in ("step-00000004.json", "step-00000012.json", "step-00000016/half"):
        arm.put(f"checkpoints/{name}", b"{}")
    assert status(str(tmp_path))["stages"]["student"] == {"state": "begun", "last_checkpoint": 12}


def test_members_of_an_ensemble_are_seen_before_their_mean(tmp_path: Path) -> None:
    finished_cache(tmp_path / "one")
    unfinished(tmp_path / "two")
    for place, name in enumerate(("one", "two")):
        (tmp_path / "work" / member_folder("cache", place)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "cache").rename(tmp_path / "work" / member_folder("cache", place))
    found = status(str(tmp_path / "work"))["stages"]["cache"]
    assert found["state"] == "begun"
    assert {name: (one["state"], one["shards_done"]) for name, one in found["members"].items()} == {
        "teacher 0": ("done", 3), "teacher 1": ("begun", 1),
    }  # fmt: skip


def test_a_cache_in_another_folder_is_seen_and_what_is_no_cache_is_not(tmp_path: Path) -> None:
    finished_cache(tmp_path)
    (tmp_path / "caches").mkdir()
    (tmp_path / "cache").rename(tmp_path / "caches" / "wide")
    unfinished(tmp_path)
    (tmp_path / "cache").rename(tmp_path / "narrow")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "manifest.json").write_text("{}")
    (tmp_path / "sequences").mkdir()
    (tmp_path / "sequences" / "recipe.yaml").write_text("capture: {folder: caches/wide}")
    states = {name: facts["state"] for name, facts in status(str(tmp_path))["stages"].items()}
    assert (states["cache"], states["cache narrow"], states["cache caches/wide"]) == ("absent", "begun", "done")
    assert not any("notes" in name for name in states)


def test_each_manifest_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_cache(tmp_path)
    read: list[str] = []
    original = Store.read

    def recorded(store: Store, name: str, at_most: int | None = None) -> bytes:
        read.append(store.path(name))
        return original(store, name, at_most)

    monkeypatch.setattr(Store, "read", recorded)
    status(str(tmp_path))
    manifests = [path for path in read if path.endswith("manifest.json")]
    assert f"{tmp_path}/cache/manifest.json" in manifests
    assert len(manifests) == len(set(manifests))
