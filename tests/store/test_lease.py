"""A lease keeps a second job away, and ends by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distributed_kd.errors import RequestError, Stopped
from distributed_kd.store.filesystem import Store
from distributed_kd.store.lease import LEASE_NAME, lease
from tests.commands import ROOT


def other_holds(store: Store, **changes: object) -> None:
    """A lease of a process of another host, alive for another minute."""
    said = {"host": "elsewhere", "process": 7, "started": 1.0, "id": "x", "until": time.time() + 60.0}
    store.put(LEASE_NAME, json.dumps(said | changes).encode())


def test_it_is_held_and_renewed_while_the_work_goes_on_and_gone_afterwards(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with lease(store, "dkd cache", seconds=0.2):
        first = json.loads(store.read(LEASE_NAME))
        deadline = time.monotonic() + 20
        while json.loads(store.read(LEASE_NAME))["until"] <= first["until"] + 0.2:
            assert time.monotonic() < deadline, "it is not renewed"
            time.sleep(0.01)
    assert not store.exists(LEASE_NAME)
    with pytest.raises(ZeroDivisionError), lease(store, "dkd cache"):
        raise ZeroDivisionError
    assert not store.exists(LEASE_NAME)


def test_a_stop_right_behind_its_writing_gives_it_back(tmp_path: Path) -> None:
    class Stopping(Store):
        def put(self, name: str, data: bytes) -> None:
            super().put(name, data)
            raise Stopped("by SIGTERM")

    with pytest.raises(Stopped), lease(Stopping(str(tmp_path)), "dkd cache"):
        raise AssertionError("nothing is done")
    assert list(tmp_path.iterdir()) == []


def test_it_is_left_to_expire_where_the_store_no_longer_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    class Silent(Store):
        def read(self, name: str, at_most: int | None = None) -> bytes:
            assert answers.wait(30), "the block's end waited for it"
            return super().read(name, at_most)

    monkeypatch.setattr("distributed_kd.store.lease._RETURN_SECONDS", 0.1)
    answers.set()
    with lease(Silent(str(tmp_path)), "dkd cache"):
        answers.clear()
    assert (tmp_path / LEASE_NAME).exists()
    answers.set()
    deadline = time.monotonic() + 20
    while (tmp_path / LEASE_NAME).exists():
        assert time.monotonic() < deadline, "it is not given back where the store answers again"
        time.sleep(0.01)


def test_a_second_holder_is_refused_and_an_expired_or_broken_lease_is_none(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    other_holds(store)
    with pytest.raises(RequestError, match="is in work by process 7 on elsewhere"), lease(store, "dkd cache"):
        pass
    assert json.loads(store.read(LEASE_NAME))["id"] == "x", "the other's lease is as it was"
    other_holds(store, until=time.time() - 1.0)
    with lease(store, "dkd cache"):
        assert json.loads(store.read(LEASE_NAME))["process"] == os.getpid()
    for broken in (b"", b"{", b"[]", b'{"until": "x"}'):
        store.put(LEASE_NAME, broken)
        with lease(store, "dkd cache"):
            pass


def test_the_lease_of_a_killed_process_of_this_host_has_ended(tmp_path: Path) -> None:
    code = (
        "import sys, time; from distributed_kd.store.filesystem import Store\n"
        "from distributed_kd.store.lease import lease\n"
        "with lease(Store(sys.argv[1]), 'dkd cache'):\n    print('held', flush=True); time.sleep(600)"
    )
    held = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert held.stdout is not None and held.stdout.readline() == b"held\n"
    store = Store(str(tmp_path))
    with pytest.raises(RequestError, match=f"process {held.pid} on "), lease(store, "dkd cache"):
        pass
    held.send_signal(signal.SIGKILL)
    held.wait()
    assert store.exists(LEASE_NAME)
    with lease(store, "dkd cache"):
        pass
    assert not store.exists(LEASE_NAME)
