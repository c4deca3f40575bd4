"""The dtype that a capture was begun in is that of all its shards, whoever goes on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.corpus.prepare import prepare
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Teacher, parse
from distributed_kd.store.filesystem import Store
from distributed_kd.teacher import capture as stage
from distributed_kd.teacher.computed import Computed
from tests.disturbed import shards_of


def test_what_is_written_is_read_and_nothing_else_taken_for_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert Computed.read(store) is None
    assert Computed.here(Teacher(model="m", dtype="float16")).dtype == "float16"
    for found in (Computed.here(Teacher(model="m")), Computed("cuda", "bfloat16")):
        found.put(store)
        assert Computed.read(store) == found
    for data in (b"", b"{}", b'{"device": "cpu", "dtype": "auto"}', b'{"device": "cpu", "dtype": "float64"}', b"[1]"):
        store.put("computed.json", data)
        with pytest.raises(RequestError, match=r"computed\.json does not say in which dtype"):
            Computed.read(store)


@pytest.mark.slow
def test_a_capture_goes_on_in_the_dtype_that_it_was_begun_in(
    ray_cluster: Any, toy_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun where `auto` was the dtype that it is not here."""
    toy_recipe["teachers"][0]["dtype"] = "auto"
    recipe = parse(toy_recipe)
    prepare(recipe)
    cache = Path(recipe.workdir) / "cache"
    assert stage.capture(recipe).index is not None
    here = json.loads((cache / "computed.json").read_text())
    shards = shards_of(cache)
    lines: list[str] = []
    monkeypatch.setattr("distributed_kd.console.say", lines.append)

    def lose(shard: str) -> None:
        (cache / "shards" / f"{shard}.arrow").unlink()
        (cache / "receipts" / f"{shard}.json").unlink()
        manifest = json.loads((cache / "manifest.json").read_text())
        (cache / "manifest.json").write_text(json.dumps(manifest | {"index": None, "sha256": None}))

    lose("00000001")
    stage.capture(recipe)
    assert shards_of(cache) == shards
    assert not [line for line in lines if "it was begun on" in line]

    other = "float32" if here["dtype"] == "bfloat16" else "bfloat16"
    (cache / "computed.json").write_text(json.dumps({"device": "cuda", "dtype": other}))
    lose("00000001")
    stage.capture(recipe)
    again = shards_of(cache)
    assert [name for name in shards if shards[name] != again[name]] == ["00000001.arrow"]
    assert [line for line in lines if f"it was begun on cuda in {other}, which cpu goes on in" in line]
    assert json.loads((cache / "computed.json").read_text()) == {"device": "cuda", "dtype": other}
