"""A capture on a cluster that comes and goes: whatever is killed, the cache ends as an undisturbed one, to the byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from distributed_kd.cache.inspect import inspect
from distributed_kd.cache.shard import Row
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import Stopped, WorkError
from distributed_kd.launch.stop import handler_kept, stopped_by_sigterm
from distributed_kd.recipe import parse
from distributed_kd.teacher.replica import Replica
from tests.commands import ROOT, dkd, said, write_recipe
from tests.disturbed import (
    add_finished,
    files_of,
    receipts_of,
    replicas,
    said_by_capture,
    shards_of,
    start_driver,
    until,
    writes_of,
    written_receipts,
)

pytestmark = pytest.mark.slow
SEED = 20261124


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without processors, and nodes of one processor each that tests add and remove."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(ROOT)  # of the workers that its nodes start
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture
def many_shards(toy_recipe: dict[str, Any]) -> dict[str, Any]:
    """One sequence a shard, so that there is a while to disturb."""
    toy_recipe["corpus"]["shard_sequences"] = 1
    toy_recipe["capture"] |= {
        "replicas": "auto", "stall_minutes": 5.0, "codec": "compact-1", "table_positions": 600,
    }  # fmt: skip
    return toy_recipe


def test_replicas_nodes_and_drivers_are_killed_and_nothing_is_lost_or_done_twice(
    cluster: Any, many_shards: dict[str, Any], tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    drawn = random.Random(SEED)
    many_shards["capture"]["address"] = cluster.address
    recipe = write_recipe(tmp_path, many_shards)
    work = Path(many_shards["workdir"])
    for stage in ("prepare", "cache"):
        done = dkd(stage, recipe)
        assert done.returncode == 0, done.stderr
    undisturbed = files_of(work / "cache")
    assert len(undisturbed) > 100
    shutil.rmtree(work / "cache")

    cache = work / "cache"
    with written_receipts(cache) as written:
        driver = disturb(cluster, start_driver(recipe), recipe, cache, drawn)
        errors = driver.communicate(timeout=400)[1]
    assert driver.returncode == 0, errors
    assert "was lost" in errors
    assert files_of(cache) == undisturbed
    assert {shard: len(files) for shard, files in written.items()} == dict.fromkeys(writes_of(cache), 1)
    assert dkd("verify", cache).returncode == 0


def disturb(
    cluster: Any, driver: subprocess.Popen[str], recipe: Path, cache: Path, drawn: random.Random
) -> subprocess.Popen[str]:
    """Kills one thing after the other, and returns the driver that is left."""
    finished: dict[str, tuple[int, int]] = {}
    for what in ("replica", "joins", "node", "driver", "replica"):
        wanted = len(finished) + drawn.randrange(1, 9)
        until(lambda wanted=wanted: receipts_of(cache) >= wanted, "receipts")
        held = replicas()
        for process in held:  # so that the machine's speed does not decide what is disturbed
            process.suspend()
        assert driver.poll() is None, f"finished before {what}: {driver.communicate()[1]}"
        add_finished(finished, cache)
        if what == "replica":
            drawn.choice(held).kill()
        elif what == "joins":
            node = cluster.add_node(num_cpus=1)
            until(lambda held=held: len(replicas()) > len(held), "a replica on the node that joined")
        elif what == "node":
            cluster.remove_node(node, allow_graceful=False)
        else:
            driver.kill()
            driver.wait()
            driver = start_driver(recipe)
        for process in held:
            with suppress(psutil.NoSuchProcess):
                process.resume()
    add_finished(finished, cache)
    return driver


def test_a_second_driver_is_refused_and_sigterm_ends_the_first_well(
    cluster: Any, many_shards: dict[str, Any], tmp_path: Path
) -> None:
    many_shards["capture"]["address"] = cluster.address
    recipe = write_recipe(tmp_path, many_shards)
    cache = Path(many_shards["workdir"]) / "cache"
    assert dkd("prepare", recipe).returncode == 0
    driver = start_driver(recipe)
    until(lambda: (cache / "lease.json").exists(), "a lease")
    done = dkd("cache", recipe)
    assert done.returncode == 2
    assert f"is in work by process {driver.pid} on " in said(done)
    until(lambda: receipts_of(cache) > 2, "receipts")
    running = inspect(str(cache))
    assert 2 < running["shards"] - len(running["missing_shards"]) < running["shards"]
    driver.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    errors = driver.communicate(timeout=60)[1]
    assert driver.returncode == 0, errors
    assert time.monotonic() - begun < 25.0
    assert "stopped by SIGTERM; resume with the same command" in errors
    assert not (cache / "lease.json").exists()
    finished = writes_of(cache)
    assert dkd("cache", recipe).returncode == 0
    add_finished(finished, cache)


def test_a_signal_that_meets_compiled_code_at_its_return_is_a_stop() -> None:
    """CPython makes a SystemError of what a handler raised there; in `ray.wait` it does happen."""

    def wait() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise SystemError("<cyfunction CoreWorker.wait> returned a result with an exception set") from error

    with pytest.raises(Stopped, match="SIGTERM"), stopped_by_sigterm():
        wait()
    with pytest.raises(SystemError, match="its own"), stopped_by_sigterm():
        raise SystemError("its own")


def test_a_signal_is_a_stop_whoever_would_catch_it_or_sets_a_handler() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.signal

    def work() -> None:
        with handler_kept():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as `ray.init` does
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            raise AssertionError("taken for an error") from None
        finally:
            signal.raise_signal(signal.SIGTERM)  # a second one, at once: what is left is done to its end

    with pytest.raises(Stopped, match="SIGTERM"), stopped_by_sigterm():
        work()
    assert (signal.getsignal(signal.SIGTERM), signal.signal) == before


@pytest.mark.parametrize("when", ["the lease is there", "Ray is being started"])
def test_sigterm_before_there_is_any_replica_ends_the_driver_well(
    toy_recipe: dict[str, Any], tmp_path: Path, when: str
) -> None:
    """With a Ray of its own, whose start takes seconds and sets a handler that exits with 15."""
    recipe = write_recipe(tmp_path, toy_recipe)
    cache = Path(toy_recipe["workdir"]) / "cache"
    assert dkd("prepare", recipe).returncode == 0
    driver = start_driver(recipe)
    until(lambda: (cache / "lease.json").exists(), "a lease")
    started = [psutil.Process(driver.pid)]
    if when == "Ray is being started":
        until(lambda: [own for own in started[0].children(recursive=True) if own.name() == "gcs_server"], "Ray's head")
        started += started[0].children(recursive=True)
    driver.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    assert driver.stderr is not None
    told = next(line for line in driver.stderr if line.startswith("dkd: "))
    assert told == "dkd: stopped by SIGTERM; resume with the same command\n"
    driver.send_signal(signal.SIGTERM)  # one that comes while the process ends
    errors = driver.communicate()[1]
    assert driver.returncode == 0, errors
    assert time.monotonic() - begun < 25.0
    assert not (cache / "lease.json").exists()
    assert not psutil.wait_procs(started, timeout=10)[1]
    assert not (cache / "manifest.json").exists()


def test_a_replica_that_hangs_is_replaced(
    ray_cluster: Any, many_shards: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by SIGSTOP: it neither works nor answers, and its process is there."""
    from distributed_kd.corpus.prepare import prepare

    many_shards["capture"] |= {"replicas": 1, "stall_minutes": 0.2}
    recipe = parse(many_shards)
    prepare(recipe)
    cache = Path(recipe.workdir) / "cache"

    def stop() -> None:
        until(lambda: receipts_of(cache) > 2, "receipts")
        for process in replicas():
            process.suspend()

    lines = said_by_capture(recipe, stop, monkeypatch)
    assert [line for line in lines if "was lost with shard" in line and "no progress for 0.2 minutes" in line]


@pytest.mark.long
def test_a_replica_that_hangs_while_it_loads_is_replaced(
    ray_cluster: Any, many_shards: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped once it has torch in memory, which loading begins with."""
    from distributed_kd.corpus.prepare import prepare

    many_shards["capture"] |= {"replicas": 1, "stall_minutes": 0.2}
    recipe = parse(many_shards)
    prepare(recipe)

    def stop() -> None:
        until(lambda: [p for p in replicas() if any("libtorch" in m.path for m in p.memory_maps())], "torch")
        for process in replicas():
            process.suspend()

    lines = said_by_capture(recipe, stop, monkeypatch)
    assert "cache: replica 0 was lost: no progress for 0.2 minutes" in lines


class DiesOfTheSample(Replica):
    """Killed once the sample for the code tables is through its teacher, as often as a file in the workdir says."""

    def _rows(self, sequences: list[Sequence]) -> list[Row]:
        rows = super()._rows(sequences)
        left = Path(self.recipe.workdir) / "deaths"
        if deaths := int(left.read_text()):
            left.write_text(str(deaths - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return rows


def test_a_replica_that_dies_while_it_makes_the_code_tables_is_replaced(
    ray_cluster: Any, toy_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from distributed_kd.corpus.prepare import prepare
    from distributed_kd.teacher import fleet
    from distributed_kd.teacher.capture import capture

    toy_recipe["capture"] |= {"codec": "compact-1", "table_positions": 600}
    recipe = parse(toy_recipe)
    prepare(recipe)
    work = Path(recipe.workdir)
    shutil.copytree(work, tmp_path / "undisturbed")
    capture(parse(toy_recipe | {"workdir": str(tmp_path / "undisturbed")}))

    monkeypatch.setattr(fleet, "Replica", DiesOfTheSample)
    (work / "deaths").write_text("6")
    with pytest.raises(WorkError, match="6 replicas were lost before they had made the code tables; mend the cause"):
        capture(recipe)
    assert not (work / "cache" / "manifest.json").exists()
    (work / "deaths").write_text("1")
    lines = said_by_capture(recipe, lambda: None, monkeypatch)
    assert len([line for line in lines if "was lost" in line]) == 1
    assert files_of(work / "cache") == files_of(tmp_path / "undisturbed" / "cache")


def test_replicas_that_are_to_use_gpus_wait_for_a_node_that_has_some(
    cluster: Any, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """A GPU in Ray's books alone: its replica computes on the processor, which is the only one with a place."""
    toy_recipe["capture"] |= {"address": cluster.address, "replicas": "auto", "device": "gpu"}
    recipe = write_recipe(tmp_path, toy_recipe)
    cache = Path(toy_recipe["workdir"]) / "cache"
    assert dkd("prepare", recipe).returncode == 0
    driver = start_driver(recipe)
    until(lambda: (cache / "lease.json").exists(), "a lease")
    time.sleep(8.0)  # longer than a replica takes to begin on the processors that are there
    assert driver.poll() is None
    assert not replicas()
    cluster.add_node(num_cpus=1, num_gpus=1)
    errors = driver.communicate(timeout=200)[1]
    assert driver.returncode == 0, errors
    assert "the cluster has no GPU now; replicas wait for one" in errors


def test_a_shard_that_cannot_be_done_is_set_aside_by_name_and_the_others_are_written(
    ray_cluster: Any, toy_recipe: dict[str, Any]
) -> None:
    from distributed_kd.corpus.prepare import prepare
    from distributed_kd.teacher.capture import capture

    recipe = parse(toy_recipe)
    prepare(recipe)
    damaged = Path(recipe.workdir) / "sequences" / "shards" / "00000001.arrow"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-9])
    with pytest.raises(WorkError, match=r"1 of \d+ shards were set aside.*shard 1: .*00000001\.arrow is damaged"):
        capture(recipe)
    cache = Path(recipe.workdir) / "cache"
    written = shards_of(cache)
    assert "00000001.arrow" not in written
    assert len(written) > 5
    damaged.write_bytes(whole)
    assert capture(recipe).index is not None
    assert written.items() < shards_of(cache).items()
