"""dkd plan: its bytes against caches that are then written, its costs against their definition, its refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed_kd import stages
from distributed_kd.cache import codecs, shard
from distributed_kd.cache.inspect import inspect
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Capture, Targets, Teacher, parse
from distributed_kd.teacher.forward import TeacherForward
from distributed_kd.teacher.plan import _makespan, _pace, plan
from distributed_kd.teacher.plan_bytes import Corpus, forecast, sum_of_shrinking
from distributed_kd.teacher.plan_probe import Timed, _Whole
from distributed_kd.teacher.targets import choose
from tests import toys
from tests.commands import dkd, said, write_recipe
from tests.teacher.test_targets import sequences_of

V = 72  # rows of the toy teacher's head
_CHECKED = [(32, None, None), (V, 0.95, None), (None, None, 22)]  # k, p, draws
METHODS: list[dict[str, Any]] = [
    {"method": "top_k", "k": 8, "temperatures": [1.0, 2.0]},
    {"method": "top_p", "p": 0.8, "k": 40},
    {"method": "sample", "draws": 22},
]


@pytest.fixture(scope="module")
def sequences() -> Any:
    """400 sequences of 63 scored positions, each over its own part of the vocabulary, so that they differ in bytes."""
    random = np.random.default_rng(0)
    documents = [random.integers(2, random.integers(4, 60), 64).tolist() for _ in range(400)]
    packed = sequences_of(*documents, length=64)
    return [replace(sequence, sequence_id=number) for number, sequence in enumerate(packed)]


@pytest.mark.parametrize("codec", ["plain-1", "compact-1"])
@pytest.mark.parametrize("targets", METHODS, ids=lambda targets: targets["method"])
@pytest.mark.parametrize("shard_rows", [4, 50])
def test_bytes_are_those_of_the_cache_that_is_written(
    toy_teacher: Path, sequences: list[Any], targets: dict[str, Any], codec: str, shard_rows: int
) -> None:
    """40 sequences tell what 400 take, whatever their shards hold, by code tables from fewer than the cache's."""
    keeps = Targets(**targets)
    soft = TeacherForward(Teacher(model=str(toy_teacher), dtype="float32"), keeps, Capture())(sequences)
    rows = [Row(sequence, own) for sequence, own in zip(sequences, soft, strict=True)]
    sample, has_tables = rows[::5], codecs.find(codec).build_tables is not None
    tables = shard.build_tables(sample, codec, V, keeps.draws or 0) if has_tables else None
    real = sum(
        len(shard.encode(rows[begin : begin + shard_rows], codec, "f" * 64, 0, tables)[0])
        for begin in range(0, len(rows), shard_rows)
    )
    positions = sum(len(row.targets) for row in rows)
    corpus = Corpus(positions, len(rows), len(rows) // shard_rows, sum(len(row.targets) for row in sample))
    found = forecast(rows[3::10], codec, keeps, V, corpus)
    assert found.shards == pytest.approx(real, rel=0.05)
    low, high = found.interval
    assert low < found.total < high < 1.4 * low
    assert found.tables == pytest.approx(len(tables or b""), rel=0.25)


def test_extrapolation_takes_smaller_steps_and_goes_back_as_well() -> None:
    assert sum_of_shrinking(0) == 0.0
    assert sum_of_shrinking(2) == pytest.approx(0.8 + 0.8**2)
    assert sum_of_shrinking(-1) == pytest.approx(-1.0)
    assert 3.9 < sum_of_shrinking(50) < 4.0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_costs_are_the_kl_of_the_completed_distribution_and_the_error_by_chance(temperature: float) -> None:
    logits = 4 * torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    p = (logits.double() / temperature).softmax(dim=1)
    for targets in (
        Targets(k=5, temperatures=[1.0, 2.0]),
        Targets(method="top_p", p=0.7, k=9, temperatures=[1.0, 2.0]),
        Targets(method="top_p", p=1.0, k=50, temperatures=[1.0, 2.0]),
    ):
        soft = choose(logits.clone(), targets).to_host()
        completed, mass = torch.zeros_like(p), 0.0
        for row in range(len(p)):
            kept = soft.ids[row][soft.ids[row] >= 0].astype(np.int64)
            own = float(p[row, kept].sum())
            completed[row] = (1.0 - own) / max(1, 50 - len(kept))
            completed[row, kept] = p[row, kept]
            mass += own
        kl = float((p * (p / completed).log()).sum())
        found = _Whole(logits).costs(soft, targets, temperature)
        assert found["truncation"] == pytest.approx(kl, rel=1e-9, abs=1e-9)
        assert found["kept_mass"] == pytest.approx(mass)
    drawn = Targets(method="sample", draws=7, draw_temperature=1.0, temperatures=[1.0, 2.0])
    at_one = logits.double().softmax(dim=1)
    empty = SoftTargets(np.zeros((30, 1), np.int32), np.zeros((30, 1)), np.zeros((30, 2)), (1.0, 2.0))
    found = _Whole(logits).costs(empty, drawn, temperature)
    assert found["squared_error_expected"] == pytest.approx(float((p**2 * (1 / at_one - 1)).sum()) / 7)


def test_the_next_shard_goes_to_the_replica_that_is_free_first() -> None:
    assert _makespan(np.array([4.0, 1.0, 1.0, 1.0, 5.0]), 2) == 8.0  # 4 + ... | 1, 1, 1, 5
    assert _makespan(np.array([2.0, 2.0, 2.0]), 2) == 4.0
    assert _makespan(np.array([2.0, 2.0, 2.0]), 100) == 2.0


def test_the_pace_is_of_positions_and_its_interval_holds_the_true_one_as_often_as_it_says() -> None:
    def batch(positions: int, seconds: float) -> Timed:
        targets = SoftTargets(
            np.zeros((positions, 1), np.int32), np.zeros((positions, 1)), np.zeros((positions, 1)), ()
        )
        return Timed([Row(None, targets)], seconds)  # type: ignore[arg-type]

    assert _pace([batch(10, 1.0), batch(30, 3.0)]) == (pytest.approx(0.1), (pytest.approx(0.1), pytest.approx(0.1)))
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        _, (low, high) = _pace([batch(100, random.normal(10, 1)) for _ in range(3)])
        held += low <= 0.1 <= high
    assert 360 <= held <= 395


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "codec"),
    [
        *zip(METHODS, ("plain-1", "compact-1", "compact-1"), strict=True),
        ({"method": "sample", "draws": 12, "draw_temperature": 2.0}, "plain-1"),
        ({"method": "full", "temperatures": [1.0, 2.0]}, "dense-1"),
    ],
    ids=["top_k", "top_p", "sample", "weighted", "full"],
)
def test_a_plan_writes_nothing_and_the_capture_takes_what_it_said(
    toy_recipe: dict[str, Any], ray_cluster: Any, targets: dict[str, Any], codec: str
) -> None:
    toy_recipe["targets"] = targets
    toy_recipe["objective"]["temperature"] = 1.0
    toy_recipe["capture"] |= {"codec": codec, "table_positions": 600}
    recipe = parse(toy_recipe)
    stages.prepare(recipe)
    work = Path(recipe.workdir)
    before = sorted(path for path in work.rglob("*") if path.is_file())
    facts = plan(recipe, price_hour=3.0, price_gb_month=0.02)
    assert sorted(path for path in work.rglob("*") if path.is_file()) == before

    stages.cache(recipe)
    real = inspect(f"{recipe.workdir}/cache")
    found = facts["forecast"]
    assert found["bytes_total"] == pytest.approx(real["bytes_total"], rel=0.1)
    stored = sum(path.stat().st_size for path in (work / "cache").rglob("*") if path.is_file())
    assert found["bytes_stored"] == pytest.approx(stored, rel=0.1)
    assert (facts["positions"], facts["sequences"], facts["shards"]) == (
        real["positions"], real["sequences"], real["shards"],
    )  # fmt: skip
    for name in ("bytes_total", "seconds", "accelerator_hours", "price_hours", "price_month"):
        low, high = found[f"{name}_interval"]
        assert 0 <= low <= (found["bytes_stored"] * 0.02e-9 if name == "price_month" else found[name]) <= high
    assert found["seconds"] == pytest.approx(sum(found["seconds_by_step"].values()))
    assert list(found["seconds_by_step"]) == ["start", "tables", "shards", "stop"]
    assert (found["seconds_by_step"]["tables"] > 0) == (codec == "compact-1")
    assert found["price_hours"] == pytest.approx(3.0 * found["accelerator_hours"])
    assert facts["probe"]["positions"] <= 0.75 * facts["positions"]

    own, *others = facts["targets"]
    assert own["present"] and own["bytes_total"] == found["bytes_total"]
    assert [one["present"] for one in others] == [False] * len(others)
    named = [(one["method"], one.get("draws") or one.get("p") or one.get("k")) for one in others]
    wanted = [
        *(("top_k", k) for k in (16, 32, 64, V)), ("top_p", 0.9), ("top_p", 0.95), ("sample", 22), ("sample", 50),
    ]  # fmt: skip
    assert named == [name for name in wanted if name != ("sample", targets.get("draws"))]
    cap = targets["k"] if targets["method"] == "top_p" else V
    assert {one["k"] for one in others if one["method"] == "top_p"} == {cap}
    sizes = [one["bytes_total"] for one in others if one["method"] == "top_k"]
    assert sizes == sorted(sizes)


@pytest.mark.slow
def test_what_other_targets_take_is_what_their_own_plan_and_capture_say(
    toy_recipe: dict[str, Any], ray_cluster: Any
) -> None:
    toy_recipe["capture"] |= {"codec": "compact-1", "table_positions": 600}
    recipe = parse(toy_recipe)
    stages.prepare(recipe)
    others = [one for one in plan(recipe)["targets"] if (one.get("k"), one.get("p"), one.get("draws")) in _CHECKED]
    assert len(others) == len(_CHECKED)
    for one in others:
        toy_recipe["targets"] = {key: one[key] for key in ("method", "k", "p", "draws") if key in one}
        toy_recipe["targets"]["temperatures"] = [1.0, 2.0]
        toy_recipe["capture"]["codec"] = one["codec"]
        stages.cache(parse(toy_recipe))
        folder = Path(recipe.workdir) / "cache"
        real = inspect(str(folder))
        assert one["bytes_total"] == pytest.approx(real["bytes_total"], rel=0.1)
        if one["method"] != "sample":
            assert one["temperatures"]["1"]["kept_mass"] == pytest.approx(real["mean_kept_mass"], rel=0.05)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_refusals(toy_recipe: dict[str, Any], tmp_path: Path, ray_cluster: Any) -> None:
    with pytest.raises(RequestError, match="run `dkd prepare` first"):
        plan(parse(toy_recipe))
    with pytest.raises(RequestError, match="a plan is of one teacher, and the recipe has 2; name one of them"):
        plan(parse(toy_recipe | {"teachers": 2 * toy_recipe["teachers"]}))
    stages.prepare(parse(toy_recipe))
    with pytest.raises(RequestError, match=r"targets\.k 73 is more than the 72 ids"):
        plan(parse(toy_recipe | {"targets": {"k": 73, "temperatures": [2.0]}}))
    with pytest.raises(RequestError, match=r"targets\.hidden\.layer 5 is not of teacher .* \(the embeddings\) to 4"):
        plan(parse(toy_recipe | {"targets": toy_recipe["targets"] | {"hidden": {"layer": 5}}}))
    other = toys.save_model(tmp_path / "other", layers=1, seed=3)
    toys.save_tokenizer(other, [*toys.WORDS[1:], toys.WORDS[0]])
    with pytest.raises(RequestError, match="the teacher's tokenizer is not the sequences'"):
        plan(parse(toy_recipe | {"teachers": [{"model": str(other)}]}))
    few = toy_recipe | {"workdir": str(tmp_path / "few")}
    few["corpus"] = toy_recipe["corpus"] | {"train_fraction": 0.05, "sequences_per_document": 1}
    stages.prepare(parse(few))
    with pytest.raises(RequestError, match="training sequences, too few to tell anything from"):
        plan(parse(few))


@pytest.mark.slow
def test_the_command_prints_tables_or_json(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, toy_recipe)
    assert dkd("prepare", recipe).returncode == 0
    done = dkd("plan", recipe, "capture.replicas=2", "--price-hour", "2", "--price-gb-month", "0.02", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "accelerator hours, 2 devices" in done.stdout
    assert "draws = 50" in done.stdout
    assert "…" not in done.stdout
    done = dkd("plan", recipe, "--positions", "200", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["probe"]["positions"] < 400
    assert "price_hours" not in facts["forecast"]
    done = dkd("plan", recipe, "targets.k=100")
    assert done.returncode == 2
    assert "targets.k 100 is more than" in said(done)
