"""A student that is trained while its cache is captured is the one that is trained afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_kd import cache
from distributed_kd.cache import following
from distributed_kd.cache.following import FollowedCache, follow
from distributed_kd.cache.manifest import RECEIPTS, CacheManifest
from distributed_kd.errors import WorkError
from distributed_kd.store.filesystem import Store
from distributed_kd.student.order import GlobalOrder
from distributed_kd.student.stream import Stream
from tests.cache.caches import TEMPERATURES, make_cache
from tests.commands import ROOT, dkd, said, write_recipe
from tests.disturbed import until
from tests.ranks import Ranks


def ids_of(opened: Any, steps: int, taken: threading.Event | None = None) -> list[int]:
    """taken: is set once the first batch has come."""
    order = GlobalOrder(opened.manifest.fingerprint, 0, opened.entries.rows, 4)
    stream = Stream(opened, order, rank=0, world=1, micro_batch=4, temperature=TEMPERATURES[0])
    found = []
    for batches in stream.steps(0, steps):
        found += [one for batch in batches for one in batch.sequence_ids]
        if taken is not None:
            taken.set()
    return found


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Path]:
    """A cache of five shards without an index, and the folder that its receipts wait in."""
    monkeypatch.setattr(following, "_LOOK_SECONDS", 0.01)
    store = Store(str(tmp_path / "cache"))
    make_cache(store, "plain-1", shards=5, rows=4)
    manifest = CacheManifest.read(store)
    assert manifest is not None
    shutil.copytree(tmp_path / "cache", tmp_path / "whole")
    manifest.model_copy(update={"index": None, "bytes_by_part": None, "mean_kept_mass": None}).put(store)
    (tmp_path / "cache" / RECEIPTS).rename(tmp_path / "waiting")
    (tmp_path / "cache" / RECEIPTS).mkdir()
    return store, tmp_path / "waiting"


def test_shards_are_waited_for_and_come_in_the_order_of_the_finished_cache(
    unfinished: tuple[Store, Path], tmp_path: Path
) -> None:
    store, waiting = unfinished
    whole = cache.open(str(tmp_path / "whole"))
    order = GlobalOrder(whole.manifest.fingerprint, 0, whole.entries.rows, 4)
    wanted = order.first_uses().tolist()
    assert sorted(wanted) == list(range(5))
    when: list[int] = []
    taken = threading.Event()

    def captured() -> None:
        for shard in wanted:
            time.sleep(0.05)
            if shard == wanted[-1]:
                assert taken.wait(60.0), "no batch came before the capture's end"
            when.append(shard)
            name = f"{shard:08d}.json"
            (waiting / name).rename(Path(store.uri) / RECEIPTS / name)

    opened = follow(store, whole.entries)
    assert isinstance(opened, FollowedCache)
    thread = threading.Thread(target=captured)
    thread.start()
    assert ids_of(opened, 10, taken) == ids_of(whole, 10)
    thread.join()
    assert when == wanted


def test_without_a_capture_the_shard_is_named(unfinished: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = unfinished
    monkeypatch.setattr(following, "_PATIENCE", 0.2)
    opened = follow(store, cache.open(str(Path(store.uri).parent / "whole")).entries)
    with pytest.raises(WorkError, match=r"shards/0000000\d\.arrow is not captured yet, and no `dkd cache` runs"):
        ids_of(opened, 10)


def test_what_is_closed_waits_no_more(unfinished: tuple[Store, Path]) -> None:
    store, _ = unfinished
    opened = follow(store, cache.open(str(Path(store.uri).parent / "whole")).entries)
    order = GlobalOrder(opened.manifest.fingerprint, 0, opened.entries.rows, 4)
    steps = Stream(opened, order, rank=0, world=1, micro_batch=4, temperature=TEMPERATURES[0]).steps(0, 5)
    ended: list[WorkError] = []

    def take() -> None:
        try:
            next(steps)
        except WorkError as error:
            ended.append(error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    time.sleep(0.1)
    opened.give_up()
    thread.join(10)
    assert "is no longer waited for" in str(ended[0])


def test_a_finished_cache_is_opened_as_it_is(tmp_path: Path) -> None:
    make_cache(Store(str(tmp_path)), "plain-1", shards=2, rows=4)
    opened = follow(Store(str(tmp_path)), cache.open(str(tmp_path)).entries)
    assert not isinstance(opened, FollowedCache)
    np.testing.assert_array_equal(opened.entries.rows, [4, 4])


@pytest.mark.slow
def test_training_beside_the_capture_ends_with_the_weights_of_training_after_it(
    toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """The training is started first, and waits for its first shards."""
    toy_recipe["baseline"] = "off"
    toy_recipe["corpus"]["shard_sequences"] = 2
    toy_recipe["trainer"] |= {"follow": True, "processes": 2, "global_batch": 4, "micro_batch": 1, "steps": 60}
    recipe = write_recipe(tmp_path, toy_recipe)
    assert dkd("prepare", recipe).returncode == 0
    work = Path(toy_recipe["workdir"])
    shutil.copytree(work, tmp_path / "after")
    training = subprocess.Popen(
        [sys.executable, "-m", "distributed_kd.cli", "train", str(recipe)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    captured = dkd("cache", recipe)
    assert captured.returncode == 0, captured.stderr
    _, line = training.communicate(timeout=300)
    assert training.returncode == 0, line

    for stage in ("cache", "train"):
        done = dkd(stage, recipe, "trainer.follow=false", f"workdir={tmp_path / 'after'}")
        assert done.returncode == 0, done.stderr
    for name in ("student/export/model.safetensors", "cache/index.arrow"):
        assert (work / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    waits = [json.loads(one)["data_wait"] for one in (work / "student" / "metrics.jsonl").read_text().splitlines()]
    assert len(waits) == 60


def held_back(prepared: dict[str, Any], folder: Path, **trainer: Any) -> tuple[dict[str, Any], Path]:
    """A recipe whose rank 1 of two waits for a shard of its first batch, and the receipt's place; it is folder/held."""
    data = prepared | {"workdir": str(folder / "work")}
    data["trainer"] = data["trainer"] | {"follow": True, "processes": 2, "micro_batch": 1, "steps": 3} | trainer
    shutil.copytree(prepared["workdir"], data["workdir"])
    whole = cache.open(f"{data['workdir']}/cache")
    order = GlobalOrder(whole.manifest.fingerprint, 0, whole.entries.rows, data["trainer"]["global_batch"])
    of_ranks = [set(whole.entries.places_of(order.rank_batch(0, rank, 2)).tolist()) for rank in range(2)]
    held = next(iter(of_ranks[1] - of_ranks[0]))
    store = Store(f"{data['workdir']}/cache")
    manifest = CacheManifest.read(store)
    assert manifest is not None
    manifest.model_copy(update={"index": None, "bytes_by_part": None, "mean_kept_mass": None}).put(store)
    receipt = Path(store.uri) / RECEIPTS / f"{int(whole.entries.shard[held]):08d}.json"
    receipt.rename(folder / "held")
    return data, receipt


@pytest.mark.slow
def test_a_stop_does_not_wait_for_a_shard(prepared_recipe: dict[str, Any], tmp_path: Path) -> None:
    """The signal is sent to the rank that has its batch, while the other waits."""
    data, _ = held_back(prepared_recipe, tmp_path)
    ranks = Ranks(data, tmp_path / "run", 2)
    until((Path(data["workdir"]) / "student" / "tensorboard").exists, "the first step's turn")
    time.sleep(3.0)
    assert ranks.is_running(), ranks.said()
    os.kill(ranks.processes[0].pid or 0, signal.SIGUSR1)
    begun = time.monotonic()
    ranks.wait()
    assert time.monotonic() - begun < 30.0
    assert "dkd: stopped before the first step of this run; the same command goes on from there" in ranks.said()


@pytest.mark.slow
def test_a_rank_may_wait_for_its_shard_longer_than_ranks_wait_for_one_another(
    prepared_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """One shard of the first batch is held back for three times `timeout_minutes`: one rank waits, the other has its
    rows."""
    data, receipt = held_back(prepared_recipe, tmp_path, timeout_minutes=0.1)
    recipe = write_recipe(tmp_path, data)
    training = subprocess.Popen(
        [sys.executable, "-m", "distributed_kd.cli", "train", str(recipe)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until((Path(data["workdir"]) / "student" / "tensorboard").exists, "the first step's turn")
    time.sleep(20.0)
    assert training.poll() is None, training.communicate()
    (tmp_path / "held").rename(receipt)
    _, line = training.communicate(timeout=200)
    assert training.returncode == 0, line
    (first, *_) = (Path(data["workdir"]) / "student" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first)["data_wait"] > 0.9


@pytest.mark.slow
def test_a_capture_that_is_not_there_is_one_line(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    toy_recipe["trainer"]["follow"] = True
    recipe = write_recipe(tmp_path, toy_recipe)
    done = dkd("train", recipe)
    assert done.returncode == 2
    assert "run `dkd prepare` first" in said(done)
