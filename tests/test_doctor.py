"""`dkd doctor`: what is well is said to be, and what is not comes with its fix and exit 1."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from distributed_kd import doctor
from distributed_kd.recipe import parse
from distributed_kd.store.filesystem import Store
from tests.commands import dkd, write_recipe
from tests.test_recipe import MINIMAL


def by_name(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {one.check: one for one in findings}


def test_packages_that_a_recipe_asks_for_are_named_with_their_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    student = {"model": "x", "lora": {"rank": 2, "alpha": 4}}
    recipe = parse(
        MINIMAL | {"workdir": "s3://bucket/work", "student": student, "trainer": {"steps": 1, "track": ["wandb"]}}
    )
    assert doctor._packages(recipe).state == "ok"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("s3fs", "wandb") else find(name))
    found = doctor._packages(recipe)
    assert (found.state, found.fix) == ("missing", "pip install 'distributed-kd[s3,wandb]'")
    assert not doctor.facts([found])["ok"]


def test_the_store_and_its_clock_are_tried_and_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse(MINIMAL | {"workdir": str(tmp_path / "work")})
    assert doctor._store(recipe).state == doctor._clock(recipe).state == "ok"
    assert not list((tmp_path / "work").iterdir())
    now = doctor.time.time()
    monkeypatch.setattr(doctor.time, "time", lambda: now + 100.0)
    found = doctor._clock(recipe)
    assert (found.state, found.found[:5]) == ("warning", "-100 ")
    monkeypatch.setattr(Store, "read", lambda *_: b"other bytes")
    assert doctor._store(recipe).state == "missing"


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(doctor, "_ranks", lambda _: doctor.Finding("ranks", "ok", ""))
    monkeypatch.setattr(doctor, "_torch", lambda: 1 / 0)
    found = by_name(list(doctor.examine(parse(MINIMAL | {"workdir": str(tmp_path / "file" / "work")}))))
    assert found["torch"].state == "missing"
    assert found["torch"].found == "ZeroDivisionError: division by zero"
    assert found["store"].state == "missing"
    assert found["python"].state == found["ray"].state == "ok"


@pytest.mark.slow
def test_ranks_that_do_not_come_together_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nothing0")
    found = doctor._ranks(None)
    assert found.state == "missing"
    assert "nothing0" in found.found or "Error" in found.found


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_RAY_SECONDS", 5)
    found = doctor._ray(parse(MINIMAL | {"capture": {"address": "127.0.0.1:1"}}))
    assert found.state == "missing"
    assert "127.0.0.1:1" in found.found


@pytest.mark.slow
def test_the_command(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, toy_recipe)
    done = dkd("doctor", recipe, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, found
    states = {one["check"]: one["state"] for one in found["checks"]}
    assert found["ok"]
    assert {states[name] for name in ("python", "torch", "ranks", "ray", "packages", "store", "clock")} == {"ok"}
    done = dkd("doctor", recipe, f"workdir={recipe}/work")
    assert done.returncode == 1
    assert "missing" in done.stdout
