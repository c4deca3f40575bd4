"""dkd repair: what is lost comes back byte by byte, what is good is not touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.cache.verify import verify
from distributed_kd.errors import RequestError
from distributed_kd.recipe import parse
from distributed_kd.store.index import shard_name
from tests.commands import dkd, said, write_recipe

pytestmark = pytest.mark.slow


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("codec", [pytest.param("plain-1", marks=pytest.mark.long), "compact-1"])
def test_a_repaired_cache_is_the_original(
    toy_recipe: dict[str, Any], tmp_path: Path, ray_cluster: Any, codec: str
) -> None:
    from distributed_kd.corpus.prepare import prepare
    from distributed_kd.teacher.capture import capture
    from distributed_kd.teacher.repair import repair

    toy_recipe["capture"]["codec"] = codec
    recipe = parse(toy_recipe)
    with pytest.raises(RequestError, match="run `dkd prepare` first"):
        repair(recipe)
    prepare(recipe)
    with pytest.raises(RequestError, match="holds no cache to repair"):
        repair(recipe)
    capture(recipe)
    cache = Path(recipe.workdir) / "cache"
    original = files_of(cache)
    assert repair(recipe).facts()["recomputed_shards"] == []

    def damage_and_repair(*, shards: bool, tables: bool, index: bool) -> dict[str, Any]:
        if shards:
            (cache / shard_name(1)).write_bytes(original[shard_name(1)][:-20])
            shutil.copy(cache / shard_name(0), cache / shard_name(3))
            (cache / shard_name(4)).unlink()
        if tables and codec == "compact-1":
            (cache / "tables.bin").unlink()
        if index:
            (cache / "index.arrow").unlink()
        written = {path: path.stat().st_mtime_ns for path in (cache / "shards").iterdir()}
        facts = repair(recipe).facts()
        now = {path for path, time in written.items() if path.stat().st_mtime_ns == time}
        touched = {path.name for path in written.keys() - now}
        assert touched == ({"00000001.arrow", "00000003.arrow"} if shards else set())
        found = files_of(cache)
        assert [name for name in original if found[name] != original[name]] == []
        assert found.keys() == original.keys()
        return facts

    facts = damage_and_repair(shards=True, tables=False, index=False)
    assert (facts["recomputed_shards"], facts["rewritten_index"], facts["changed_shards"]) == ([1, 3, 4], False, [])
    facts = damage_and_repair(shards=False, tables=True, index=True)
    assert (facts["recomputed_shards"], facts["rewritten_index"]) == ([], True)
    assert facts["recomputed_tables"] == (codec == "compact-1")
    facts = damage_and_repair(shards=True, tables=True, index=True)
    assert (facts["recomputed_shards"], facts["rewritten_index"]) == ([1, 3, 4], True)

    # An unfinished one is finished, even where a receipt is damaged; another recipe's is refused.
    manifest = json.loads(original["manifest.json"])
    (cache / "manifest.json").write_text(json.dumps(manifest | {"index": None, "sha256": None}))
    (cache / "receipts" / "00000002.json").write_text("{}")
    assert repair(recipe).facts()["recomputed_shards"] == [2]
    assert files_of(cache) == original
    assert verify(str(cache), 1).all_good
    toy_recipe["targets"]["k"] = 4
    with pytest.raises(RequestError, match=r"targets\.k: 8, not 4"):
        repair(parse(toy_recipe))


def test_the_command(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, toy_recipe)
    assert "run `dkd prepare` first" in said(dkd("repair", recipe))
    for stage in ("prepare", "cache"):
        done = dkd(stage, recipe)
        assert done.returncode == 0, done.stderr
    cache = Path(toy_recipe["workdir"]) / "cache"
    original = files_of(cache)
    (cache / shard_name(2)).write_bytes(b"nothing")
    assert dkd("verify", cache).returncode == 1
    done = dkd("repair", recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recomputed_shards"] == [2]
    assert dkd("verify", cache).returncode == 0
    assert files_of(cache) == original
