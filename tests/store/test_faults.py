"""An object store that fails: now and then, whatever it is asked, and for good. A real client, server and network."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from distributed_kd.errors import StoreError, StoreRefused
from distributed_kd.store import filesystem
from distributed_kd.store.filesystem import Store
from tests.buckets import forget_clients
from tests.commands import ROOT, dkd, said, write_recipe
from tests.store.faulty import PASSING, Fault, FaultyProxy, Kind

pytestmark = pytest.mark.slow
DATA = random.Random(0).randbytes(3_000_000)
BRIEF = '{"read_timeout": 1}'  # of s3fs; a late answer of the proxy's comes after that
ONCE = "1"  # AWS_MAX_ATTEMPTS


@pytest.fixture
def proxy(bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """In front of moto, and this process's environment leads to it; no client of an earlier test's is left."""
    made = FaultyProxy(int(bucket["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]))
    made.start()
    for name, value in {**bucket, "AWS_ENDPOINT_URL": made.endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 1}})
    forget_clients()
    yield made
    made.stop()
    forget_clients()


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_what_fails_twice_is_asked_again(proxy: FaultyProxy, kind: Kind, method: str) -> None:
    store = Store(f"s3://bucket/{method} {kind}")
    if method == "GET":
        store.put("file", DATA)
    proxy.faults = [Fault(kind, method, "/file", times=2)]
    if method == "PUT":
        store.put("file", DATA)
        proxy.faults.clear()
    assert store.read("file", at_most=len(DATA) + 1) == DATA
    assert proxy.done[kind] == (1 if (method, kind) == ("PUT", "cut get") else 2)  # the head of an answer is enough
    assert store.read("file") == DATA
    assert store.list("") == ["file"]


@pytest.mark.parametrize("kind", ["503", "500", "late", "cut put", "lost answer"])
def test_a_put_that_fails_for_good_is_one_line_and_shows_no_half_of_it(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", ONCE)
    store = Store(f"s3://bucket/for good {kind}")
    store.put("file", b"former")
    proxy.faults = [Fault(kind, "PUT", "/file", times=10**6)]
    line = f"s3://bucket/for good {kind}/file cannot be written, whatever was tried"
    with pytest.raises(StoreError, match=line) as caught:
        store.put("file", DATA)
    assert caught.value.exit_code == 1
    assert "run the same command" in str(caught.value) and "\n" not in str(caught.value)
    proxy.faults.clear()
    assert store.read("file") == (DATA if kind == "lost answer" else b"former")


def test_a_put_that_is_no_longer_read_is_given_up(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_SECONDS", 2.0)
    monkeypatch.setattr(filesystem, "_SLOWEST", 10**12)
    store = Store("s3://bucket/stopped")
    proxy.faults = [Fault("stopped put", "PUT", "/file", times=10**6)]
    with pytest.raises(StoreError, match="cannot be written, whatever was tried"):
        store.put("file", DATA * 10)
    assert proxy.done == {"stopped put": 1}, "nothing but our own limit ends it"
    assert not store.exists("file")


def test_a_file_is_one_put_and_one_get_whatever_its_size(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(fsspec.config.conf, "s3")  # moto takes its time over so many bytes
    large = DATA * 35  # s3fs would put more than 100 MiB in parts
    store = Store("s3://bucket/large")
    store.put("file", large)
    assert store.read("file") == large
    assert proxy.requests == ["PUT /bucket/large/file", "GET /bucket/large/file"]


def test_what_the_store_refuses_is_asked_once(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("s3://bucket/refused")
    proxy.faults = [Fault("403", "PUT", times=10**6), Fault("403", "GET", times=10**6)]
    calls: list[Callable[[], Any]] = [lambda: store.put("file", b""), lambda: store.read("file", at_most=9)]
    for number, call in enumerate(calls):
        with pytest.raises(
            StoreRefused, match=r"s3://bucket/refused/file cannot be (written|read): Forbidden"
        ) as caught:
            call()
        assert caught.value.exit_code == 2
        assert len(proxy.requests) == number + 1
    proxy.faults.clear()
    with pytest.raises(StoreRefused, match=r"s3://no-such-bucket/x/file cannot be written: .*bucket does not exist"):
        Store("s3://no-such-bucket/x").put("file", b"")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    forget_clients()
    with pytest.raises(StoreRefused, match="cannot be written: Unable to locate credentials"):
        Store("s3://bucket/refused").put("file", b"")


def test_what_opens_the_store_is_told_nowhere(
    proxy: FaultyProxy, toy_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, token = "wJalrXUtnFEMI/K7MDENG", "FwoGZXIvYXdzEJr"
    for name, value in (("SECRET_ACCESS_KEY", secret), ("SESSION_TOKEN", token), ("MAX_ATTEMPTS", ONCE)):
        monkeypatch.setenv(f"AWS_{name}", value)
    toy_recipe["workdir"] = "s3://bucket/told"
    recipe = write_recipe(tmp_path, toy_recipe)
    printed = []
    for kind, code in (("403", 2), ("lost answer", 1)):
        proxy.faults = [Fault(kind, "PUT", times=10**6)]
        for options in ([], ["--debug"]):
            done = dkd("prepare", recipe, *options)
            printed.append(done.stderr + done.stdout)
            assert done.returncode == (1 if options else code), done.stderr
            assert options or "s3://bucket/told/sequences" in said(done)
    proxy.faults.clear()
    done = dkd("prepare", recipe, "--debug")
    printed.append(done.stderr + done.stdout)
    assert [text.count("Traceback") > 0 for text in printed] == [False, True, False, True, False]
    logs = Path(tempfile.mkdtemp(prefix="dkd", dir="/tmp"))  # short: Ray's sockets' paths may have 107 characters
    for kind, option, code in (("403", "--json", 2), ("lost answer", "--debug", 1)):
        proxy.faults = [Fault(kind, "PUT", "/told/cache/shards", times=10**6)]
        done = dkd("cache", recipe, option, RAY_TMPDIR=str(logs))
        printed.append(done.stderr + done.stdout)
        assert done.returncode == code, done.stderr
        assert "s3://bucket/told/cache/shards" in done.stderr
    proxy.faults.clear()
    done = dkd("cache", recipe, RAY_TMPDIR=str(logs))
    assert done.returncode == 0, done.stderr
    printed += [path.read_text(errors="replace") for path in logs.rglob("*") if path.is_file()]
    shutil.rmtree(logs)
    assert len(printed) > 50, "Ray's logs are looked through as well"
    written = files_of("s3://bucket/told", but=())
    assert len(written) > 15
    for word in (secret, token):
        assert not [text for text in printed if word in text]
        assert not [name for name, data in written.items() if word.encode() in data]


def files_of(workdir: str, but: tuple[str, ...] = ("recipe.yaml", "run.json")) -> dict[str, bytes]:
    """Every file under a folder, but for those that name the folder or tell the time."""
    fs, root = fsspec.url_to_fs(workdir)
    fs.invalidate_cache()
    names = [path.removeprefix(root) for path in fs.find(root)]
    return {name: fs.cat_file(root + name) for name in sorted(names) if not name.endswith(but)}


def receipts_of(cache: str) -> list[str]:
    return [name for name in files_of(cache) if name.startswith("/receipts")]


def environment_of(proxy: FaultyProxy) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL": proxy.endpoint, "FSSPEC_S3_CONFIG_KWARGS": BRIEF}


def test_a_job_through_faults_ends_as_one_without(
    proxy: FaultyProxy, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    toy_recipe["corpus"]["shard_sequences"] = 4
    proxy.seed = random.SystemRandom().randrange(10**6)
    print(f"seed {proxy.seed}")
    for workdir, rate in (("s3://bucket/undisturbed", 0.0), ("s3://bucket/disturbed", 0.1)):
        proxy.rate = rate
        proxy.draw()
        recipe = write_recipe(tmp_path, toy_recipe | {"workdir": workdir})
        for stage in ("prepare", "cache"):
            done = dkd(stage, recipe, **environment_of(proxy))
            assert done.returncode == 0, done.stderr
    print(f"{dict(proxy.done)} of {len(proxy.requests)} requests")
    proxy.rate = 0.0
    assert proxy.done.total() > 10
    found = files_of("s3://bucket/disturbed")
    assert list(found) == list(files_of("s3://bucket/undisturbed"))
    assert found == files_of("s3://bucket/undisturbed")


def test_a_store_that_takes_nothing_makes_the_teacher_wait(
    proxy: FaultyProxy, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """A replica has two shards in work at most, so a slow store never fills its memory."""
    toy_recipe["corpus"]["shard_sequences"] = 4
    toy_recipe["capture"]["replicas"] = 1
    recipe = write_recipe(tmp_path, toy_recipe | {"workdir": "s3://bucket/slow"})
    environment = {"AWS_ENDPOINT_URL": proxy.endpoint}
    assert dkd("prepare", recipe, **environment).returncode == 0
    proxy.held = "/slow/cache/shards/"
    work = subprocess.Popen(
        [sys.executable, "-m", "distributed_kd.cli", "cache", str(recipe)],
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)}, text=True, stderr=subprocess.PIPE,
    )  # fmt: skip

    def on_their_way() -> set[str]:
        return {line for line in proxy.requests if line.startswith("PUT ") and "/slow/cache/shards/" in line}

    deadline = time.monotonic() + 120
    while len(on_their_way()) < 2:
        assert time.monotonic() < deadline and work.poll() is None
        time.sleep(0.01)
    time.sleep(3.0)  # the toy teacher has done a shard in hundredths of one
    assert len(on_their_way()) == 2
    proxy.held = None
    errors = work.communicate(timeout=120)[1]
    assert work.returncode == 0, errors
    assert len(on_their_way()) > 6


def test_a_store_that_goes_for_good_ends_the_capture_and_the_same_command_finishes_it(
    proxy: FaultyProxy, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    toy_recipe["corpus"]["shard_sequences"] = 4
    toy_recipe["workdir"] = "s3://bucket/going"
    recipe = write_recipe(tmp_path, toy_recipe)
    assert dkd("prepare", recipe, **environment_of(proxy)).returncode == 0

    def until_it_is_down(**environment: str) -> subprocess.Popen[str]:
        own = {**os.environ, **environment_of(proxy), "PYTHONPATH": str(ROOT), **environment}
        begun = len(proxy.requests)
        work = subprocess.Popen(
            [sys.executable, "-m", "distributed_kd.cli", "cache", str(recipe)],
            env=own,
            text=True,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 120
        while sum("PUT /bucket/going/cache/receipts" in line for line in proxy.requests[begun:]) < 3:
            assert time.monotonic() < deadline and work.poll() is None
            time.sleep(0.01)
        proxy.is_down = True
        return work

    work = until_it_is_down(AWS_MAX_ATTEMPTS=ONCE)
    told = said(subprocess.CompletedProcess(work.args, 0, "", work.communicate(timeout=300)[1]))
    assert work.returncode == 1
    assert "s3://bucket/going/" in told and "Slow Down" in told and "run the same command" in told

    proxy.is_down = False
    first = receipts_of("s3://bucket/going/cache")
    work = until_it_is_down()  # tried for minutes, were it not told to stop
    work.send_signal(signal.SIGTERM)
    told = said(subprocess.CompletedProcess(work.args, 0, "", work.communicate(timeout=25)[1]))
    assert told == "stopped by SIGTERM; resume with the same command" and work.returncode == 0

    proxy.is_down = False
    there = len(receipts_of("s3://bucket/going/cache"))
    assert there >= len(first) + 3
    half = json.loads(dkd("inspect", "s3://bucket/going/cache", "--json", **environment_of(proxy)).stdout)
    assert half["shards"] - len(half["missing_shards"]) == there < half["shards"]
    local = toy_recipe | {"workdir": str(tmp_path / "job")}
    assert dkd("cache", recipe, **environment_of(proxy)).returncode == 0
    for stage in ("prepare", "cache"):
        assert dkd(stage, write_recipe(tmp_path, local)).returncode == 0
    assert files_of("s3://bucket/going") == files_of(str(tmp_path / "job"))
