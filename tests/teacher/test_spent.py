"""What a capture took is the sum over its commands, of those as well that never ended by themselves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.errors import StoreError
from distributed_kd.store.filesystem import Store
from distributed_kd.store.manifest import Run
from distributed_kd.teacher import spent
from distributed_kd.teacher.spent import Spent


def test_commands_add_up_whether_they_ended_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    killed = Spent(store, time.monotonic() - 100.0)
    killed.so_far(180.0)  # more than a minute after it began; and of the killed one no more is known
    killed.so_far(190.0)
    ended = Spent(store, time.monotonic() - 50.0)
    ended.so_far(1.0)
    ended.in_all(80.0, peak_memory_bytes=7)
    ended.keep()
    found = Run.read(store)
    assert found is not None
    assert (found.device_seconds, found.peak_memory_bytes) == (260.0, 7)
    assert found.seconds == pytest.approx(150.0, abs=5.0)

    refused = Spent(store, time.monotonic() - 100.0)

    def fail(*_: Any) -> None:
        raise StoreError("not today")

    said: list[str] = []
    monkeypatch.setattr(Store, "put", fail)
    monkeypatch.setattr(spent.console, "say", said.append)
    refused.so_far(1.0)
    refused.so_far(2.0)
    assert said == ["cache: how long it took so far is not kept: not today"], "and asked again a minute later"
    assert Run.read(store) == found


def test_a_damaged_file_is_told_of_and_nothing_depends_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(spent.console, "say", said.append)
    (tmp_path / "run.json").write_text("{}")
    Spent(Store(str(tmp_path)), time.monotonic()).in_all(3.0, peak_memory_bytes=0)
    assert len(said) == 1 and "it counts from here on" in said[0]
    found = Run.read(Store(str(tmp_path)))
    assert found is not None and found.device_seconds == 3.0
