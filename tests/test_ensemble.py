"""Two teachers, as a user runs it: two captures over the same sequences, a merge, a student trained from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.cache.verify import verify
from distributed_kd.errors import RequestError
from distributed_kd.recipe import parse
from tests import toys
from tests.commands import dkd, write_recipe

pytestmark = pytest.mark.slow


def test_a_student_learns_from_the_mean_of_two_teachers(
    toy_recipe: dict[str, Any], tmp_path: Path, ray_cluster: Any
) -> None:
    from distributed_kd.corpus.prepare import prepare
    from distributed_kd.student.train import train
    from distributed_kd.teacher.capture import capture
    from distributed_kd.teacher.repair import repair

    second = toys.save_model(tmp_path / "second", layers=2, seed=7)
    one, two, both = (tmp_path / name for name in ("one", "two", "both"))
    toy_recipe["baseline"] = "off"
    first = toy_recipe | {"workdir": str(one)}
    prepare(parse(first))
    for work in (two, both):
        shutil.copytree(one / "sequences", work / "sequences")
    capture(parse(first))
    targets = {"k": 12, "temperatures": [1.0, 2.0]}
    capture(parse(first | {"workdir": str(two), "targets": targets, "teachers": [{"model": str(second)}]}))

    done = dkd("merge", one / "cache", two / "cache", "--out", both / "cache", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["k"], facts["temperatures"], facts["missing_shards"]) == (20, [1.0, 2.0], [])
    assert 0.0 < facts["merge"]["error_bound"]["mean"][0] < facts["merge"]["error_bound"]["maximum"][0] < 2.0
    assert verify(str(both / "cache"), 1).all_good

    # The recipe's one teacher and K are not the merge's.
    toy_recipe["workdir"] = str(both)
    done = dkd("train", write_recipe(tmp_path, toy_recipe), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["student"]["steps"] == 6
    metrics = [json.loads(line) for line in (both / "student" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["loss"] < metrics[0]["loss"]

    recipe = parse(toy_recipe)
    with pytest.raises(RequestError, match="is a merge of 2 caches; `dkd train` reads it as it is"):
        capture(recipe)
    with pytest.raises(RequestError, match=r"is a merge of 2 caches; .* delete it and run `dkd merge` again"):
        repair(recipe)
    hotter = {"targets": {"temperatures": [3.0]}, "objective": {"temperature": 3.0}}
    with pytest.raises(RequestError, match=r"objective\.temperature 3 is not in \S+; it holds \[1\.0, 2\.0\]"):
        train(parse(toy_recipe | hotter))
    shutil.rmtree(both / "sequences")
    toy_recipe["corpus"]["sequence_length"] = 12
    prepare(parse(toy_recipe))
    with pytest.raises(RequestError, match="is a merge over other sequences than"):
        train(parse(toy_recipe))
