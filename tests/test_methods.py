"""Every target method through capture, verification and training, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_kd import cache
from tests import toys
from tests.commands import dkd, write_recipe

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("targets", "codec", "k"),
    [
        pytest.param(
            {"method": "top_p", "p": 0.7, "k": 8, "temperatures": [1.0, 2.0]}, "compact-1", 8, marks=pytest.mark.long
        ),
        ({"method": "sample", "draws": 12, "temperatures": [2.0]}, "compact-1", 12),
        pytest.param(
            {"method": "sample", "draws": 12, "draw_temperature": 1.0, "temperatures": [2.0]},
            "plain-1",
            12,
            marks=pytest.mark.long,
        ),
        pytest.param({"method": "full", "temperatures": [1.0, 2.0]}, "dense-1", 72, marks=pytest.mark.long),
    ],
    ids=["top_p", "sample", "weighted", "full"],
)
def test_a_method_is_captured_verified_and_trained_from(
    toy_recipe: dict[str, Any], tmp_path: Path, targets: dict[str, Any], codec: str, k: int
) -> None:
    toy_recipe |= {"targets": targets, "baseline": "off"}
    toy_recipe["capture"] |= {"codec": codec, "table_positions": 300}
    recipe = write_recipe(tmp_path, toy_recipe)
    for stage in ("prepare", "cache"):
        done = dkd(stage, recipe, "--json")
        assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["method"], facts["k"], facts["codec"]) == (targets["method"], k, codec)
    folder = Path(toy_recipe["workdir"]) / "cache"
    assert dkd("verify", folder).returncode == 0

    rows = next(iter(cache.open(str(folder)).batches(10**6)))
    kept = np.concatenate([(row.targets.ids >= 0).sum(axis=1) for row in rows])
    if targets["method"] == "full":
        assert (kept == toys.VOCABULARY + 8).all()
    else:
        assert kept.min() < kept.max() <= k  # as many as the position needs, or happens to draw

    before = {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}
    (folder / "shards" / "00000001.arrow").unlink()
    assert dkd("repair", recipe).returncode == 0
    assert {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())} == before

    done = dkd("train", recipe, "--json")
    assert done.returncode == 0, done.stderr
    metrics = Path(toy_recipe["workdir"]) / "student" / "metrics.jsonl"
    losses = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
    assert losses[-1] < losses[0]
    shutil.rmtree(toy_recipe["workdir"])
