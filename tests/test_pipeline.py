"""The whole line on toys, as a user runs it: real Ray, real DeepSpeed ranks over gloo, real files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distributed_kd import stages
from distributed_kd.cache import open as cache_of
from distributed_kd.cache.audit_file import keep_audit
from distributed_kd.recipe import load
from distributed_kd.teacher.audit import audit
from tests import browser, toys
from tests.commands import ROOT, dkd, write_recipe
from tests.evaluate.test_page_in_browser import check

pytestmark = pytest.mark.slow


def progress_in(stderr: str) -> list[str]:
    """The lines that tell a person how far a stage is."""
    stages = "survey|prepare|pack|cut|cache|train|student|baseline|evaluate|starting|joining|making|fetching|converting"
    return [line for line in stderr.splitlines() if re.match(rf"({stages})\b.*( |:)", line)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def artifacts_of(work: Path) -> dict[str, bytes]:
    """Sequences and cache with their indexes, manifests and receipts; not how long they took, and where they lie."""
    files = {name: content for name, content in files_of(work).items() if name.startswith(("sequences/", "cache/"))}
    return {name: content for name, content in files.items() if not name.endswith(("run.json", "recipe.yaml"))}


def test_the_line_runs_then_skips_and_trains_without_the_teacher(
    toy_recipe: dict[str, Any], toy_corpus: Path, tmp_path: Path
) -> None:
    """The teacher is deleted after the capture and comes back to be evaluated; a second run does nothing."""
    teacher = toys.save_model(tmp_path / "teacher", layers=4, seed=1)
    work = Path(toy_recipe["workdir"])
    toy_recipe |= {
        "teachers": [{"model": str(teacher), "dtype": "float32"}],
        "student": {"init": "teacher_layers", "layers": [0, 3], "freeze": ["embeddings", "layers.0"]},
    }
    toy_recipe["trainer"] |= {"processes": 2, "steps": 12, "micro_batch": 2}
    recipe = write_recipe(tmp_path, toy_recipe)

    for stage in ("prepare", "cache"):
        done = dkd(stage, recipe, "--json")
        assert done.returncode == 0, done.stderr
        assert progress_in(done.stderr) == []
    shutil.move(teacher, tmp_path / "hidden")
    done = dkd("train", recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert progress_in(done.stderr) == []
    arms = json.loads(done.stdout)
    assert arms["student"]["trained_parameters"] < arms["student"]["parameters"]
    done = dkd("cache", recipe)
    assert done.returncode == 0, "a finished cache needs no teacher either"
    assert "done already" in done.stderr
    shutil.move(tmp_path / "hidden", teacher)

    done = dkd("run", recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert progress_in(done.stderr) == []
    report = json.loads(done.stdout)
    check_report(report)
    metrics = [json.loads(line) for line in (work / "student" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(12))
    losses = [line["loss"] for line in metrics]  # of other batches each: which ones follows from the teacher's path too
    assert sum(losses[-4:]) < sum(losses[:4])
    assert all(0.0 <= line["data_wait"] < 1.0 for line in metrics)
    curves = EventAccumulator(str(work / "student" / "tensorboard"))
    curves.Reload()
    assert {*curves.Tags()["scalars"]} == {f"train/{name}" for line in metrics for name in line} - {"train/step"}
    assert [event.value for event in curves.Scalars("train/loss")] == pytest.approx(losses)

    before = files_of(work)
    done = dkd("run", recipe)
    assert done.returncode == 0, done.stderr
    for stage in ("prepare", "cache", "train: student", "train: baseline", "evaluate"):
        assert f"{stage}" in done.stderr
    assert done.stderr.count("done already") == 5
    assert any(line.startswith("survey: ") for line in progress_in(done.stderr)), "without --json they are there"
    assert files_of(work) == before
    assert "report.html" in done.stdout
    look_at_the_page_with_an_audit(work, recipe, report, tmp_path)
    done = dkd("status", str(work), "--json")
    states = json.loads(done.stdout)["stages"]
    assert {name: facts["state"] for name, facts in states.items()} == dict.fromkeys(
        ("prepare", "cache", "student", "baseline", "evaluate"), "done"
    )
    assert states["student"]["steps"] == 12
    assert states["evaluate"]["retention"] == report["retention"]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = AutoModelForCausalLM.from_pretrained(work / "student" / "export")
    assert exported.config.num_hidden_layers == 2
    assert len(AutoTokenizer.from_pretrained(work / "student" / "export")) == toys.VOCABULARY
    # What was frozen is the teacher's to the bit; what was not has moved.
    original = AutoModelForCausalLM.from_pretrained(teacher).state_dict()
    own = exported.state_dict()
    assert own["model.layers.0.mlp.up_proj.weight"].equal(original["model.layers.0.mlp.up_proj.weight"])
    assert own["model.embed_tokens.weight"].equal(original["model.embed_tokens.weight"])
    assert not own["model.layers.1.mlp.up_proj.weight"].equal(original["model.layers.3.mlp.up_proj.weight"])


def look_at_the_page_with_an_audit(work: Path, recipe: Path, report: dict[str, Any], folder: Path) -> None:
    """An audit that is younger than the report is put into it, and nothing is scored again; then a browser opens it."""
    audited = folder / "audited"
    shutil.copytree(work, audited)
    keep_audit(f"{audited}/cache", audit(f"{audited}/cache", positions=200))
    later = stages.evaluate(load(str(recipe), [f"workdir={audited}"]))
    assert later.pop("audit")["alternatives"][-1]["k"] == 32
    assert later == report == json.loads((work / "report" / "report.json").read_text())
    page = audited / "report" / "report.html"
    assert "What other choices would take and cost" in page.read_text()
    if browser.CHROMIUM is not None:
        check(page, folder)
    else:
        warnings.warn(f"the page was not looked at: {browser.ABSENT}", stacklevel=2)  # pytest prints it


def check_report(report: dict[str, Any]) -> None:
    """Every field that the report promises, with numbers that can be."""
    for model in ("teacher", "student", "baseline"):
        figures = report["models"][model]
        for key in (
            "cross_entropy", "perplexity", "kl_from_teacher", "agreement", "ece", "parameters", "positions_per_second",
        ):  # fmt: skip
            assert figures[key] >= 0.0
    assert report["models"]["teacher"]["kl_from_teacher"] == pytest.approx(0.0, abs=1e-6)
    assert report["models"]["teacher"]["agreement"] == 1.0
    assert 0.0 < report["models"]["student"]["agreement"] <= 1.0
    for figure in ("cross_entropy", "kl_from_teacher", "agreement"):
        low, high = report["differences"][figure]["interval"]
        assert low <= report["differences"][figure]["difference"] <= high
    low, high = report["retention_interval"]
    assert 0.0 <= low <= report["retention"] <= high
    assert report["cache"]["bytes_per_position"] > 0
    for stage in ("prepare", "cache", "train", "evaluate"):
        assert report["stages"][stage]["seconds"] > 0.0
        assert (report["stages"][stage]["device_seconds"] > 0.0) == (stage != "prepare")
    bins, positions = report["by_teacher_entropy"], report["held_out"]["positions"]
    assert sum(row["positions"] for row in bins) == positions
    for arm in ("student", "baseline"):
        for key in ("agreement", "kl_from_teacher"):
            mean = sum(row["positions"] * row["models"][arm][key] for row in bins) / positions
            assert mean == pytest.approx(report["models"][arm][key])
    chosen = [example["chosen"] for example in report["examples"]]
    assert chosen[:6] == ["largest"] * 3 + ["smallest"] * 3 and set(chosen[6:]) <= {"drawn"}
    assert all(len(own["best"]) == 5 for example in report["examples"] for own in example["models"].values())
    assert report["kept_mass_by_k"]["k"] == [1, 2, 4, 8]
    assert report["kept_mass_by_k"]["mass"][-1] == pytest.approx(report["cache"]["mean_kept_mass"], rel=0.05)
    assert {"sequences", "cache", "student", "baseline"} <= report["fingerprints"].keys()
    assert report["recipe"]["name"] == "toy"


@pytest.mark.parametrize("codec", [pytest.param("plain-1", marks=pytest.mark.long), "compact-1"])
def test_shards_do_not_depend_on_workers_blocks_taken_up_or_replicas(
    toy_recipe: dict[str, Any], tmp_path: Path, ray_cluster: Any, codec: str
) -> None:
    """The same source gives the same files: done at once, done again, or interrupted after some blocks and shards."""
    from distributed_kd.corpus.prepare import prepare
    from distributed_kd.recipe import parse
    from distributed_kd.teacher.capture import capture

    def shards(work: str, **capture_keys: Any) -> dict[str, bytes]:
        data = {**toy_recipe, "workdir": str(tmp_path / work)}
        data["capture"] = {**toy_recipe["capture"], "codec": codec, **capture_keys}
        recipe = parse(data)
        prepare(recipe)
        capture(recipe)
        return artifacts_of(tmp_path / work)

    first = shards("first")
    assert len(first) > 10
    assert shards("second", replicas=8) == first, "more replicas than this cluster of two processors has place for"
    assert prepared_on_one_processor(toy_recipe, tmp_path / "third") == {
        name: content for name, content in first.items() if name.startswith("sequences/")
    }
    assert {f"cache/{name}" for name in ("manifest.json", "index.arrow", "computed.json")} <= first.keys()

    # A capture that lost two shards, their receipts and its commit goes on and ends with the same bytes.
    cache = tmp_path / "first" / "cache"
    for number in (0, 3):
        (cache / "shards" / f"{number:08d}.arrow").unlink()
        (cache / "receipts" / f"{number:08d}.json").unlink()
    manifest = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps(manifest | {"index": None, "sha256": None}))
    kept = {name: (cache / "shards" / name).stat().st_mtime_ns for name in files_of(cache / "shards")}
    assert shards("first") == first
    opened = cache_of(str(cache))
    assert opened.manifest.codec == codec
    assert (opened.manifest.tables is None) == (codec == "plain-1")
    for row in (opened[0], opened[len(opened) - 1]):
        assert len(row.targets) == row.sequence.positions
    for name, written in kept.items():
        assert (cache / "shards" / name).stat().st_mtime_ns == written, "a finished shard was computed again"


def prepared_on_one_processor(recipe: dict[str, Any], work: Path) -> dict[str, bytes]:
    """The sequences that a Ray of a single processor writes: one task after the other."""
    code = (
        "import json, sys, ray\n"
        "from distributed_kd.corpus.prepare import prepare\n"
        "from distributed_kd.recipe import parse\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "prepare(parse(json.loads(sys.argv[1])))\n"
    )
    data = json.dumps({**recipe, "workdir": str(work)})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    subprocess.run([sys.executable, "-c", code, data], env=environment, check=True, timeout=200)
    return {name: content for name, content in artifacts_of(work).items() if name.startswith("sequences/")}


@pytest.mark.long  # tests/student/test_kills.py kills, and the next one stops
def test_training_that_was_killed_and_then_stopped_ends_with_the_uninterrupted_weights(
    captured_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """SIGKILL of everything after a checkpoint, Ctrl-C after a later one; the same command ends with the same bits."""
    captured_recipe["trainer"] |= {"steps": 300, "checkpoint_every": 10, "processes": 2, "micro_batch": 2}
    recipe = write_recipe(tmp_path, captured_recipe)
    work = Path(captured_recipe["workdir"])
    shutil.copytree(work, tmp_path / "whole")
    assert dkd("train", recipe, f"workdir={tmp_path / 'whole'}").returncode == 0
    checkpoints = work / "student" / "checkpoints"

    training = start_training(recipe)
    wait_for_checkpoint(training, checkpoints, step=10)
    # The ranks are in a session of their own.
    for process in [*psutil.Process(training.pid).children(recursive=True), training]:
        process.kill()
    training.wait()
    assert not (work / "student" / "manifest.json").exists()
    killed_at = newest_step(checkpoints)

    training = start_training(recipe)
    wait_for_checkpoint(training, checkpoints, step=killed_at + 10)
    started = psutil.Process(training.pid).children(recursive=True)
    training.send_signal(signal.SIGINT)
    _, told = training.communicate(timeout=60)
    assert training.returncode == 130
    assert "dkd: stopped; the same command goes on where it was" in told
    assert len(started) >= 2 and not psutil.wait_procs(started, timeout=5)[1]  # the ranks, and what started them
    assert newest_step(checkpoints) < 300, "training was over before it was stopped; give it more steps"

    done = dkd("train", recipe)
    assert done.returncode == 0, done.stderr
    name = "student/export/model.safetensors"
    assert (work / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    metrics = [json.loads(line) for line in (work / "student" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(300))
    assert len(list(checkpoints.glob("step-*.json"))) <= 2


@pytest.mark.parametrize(
    ("told", "number"),
    [("command", signal.SIGTERM), pytest.param("rank", signal.SIGUSR1, marks=pytest.mark.long)],
)
def test_a_training_that_is_asked_to_stop_saves_its_step_and_goes_on_from_there(
    captured_recipe: dict[str, Any], tmp_path: Path, number: signal.Signals, told: str
) -> None:
    """As Kubernetes and Slurm ask, of the command or of one rank alone; without any checkpoint but that one."""
    captured_recipe["trainer"] |= {"steps": 300, "processes": 2, "micro_batch": 2}
    recipe = write_recipe(tmp_path, captured_recipe)
    work = Path(captured_recipe["workdir"])
    shutil.copytree(work, tmp_path / "whole")
    training = start_training(recipe)
    ranks = running_ranks(training)
    if told == "rank":
        os.kill(ranks[1], number)
    else:
        training.send_signal(number)
    _, line = training.communicate(timeout=30)  # what Slurm and Kubernetes leave it
    assert training.returncode == 0, line
    step = int(
        re.search(r"dkd: stopped after step (\d+), which is saved; the same command goes on from there", line)[1]
    )
    assert newest_step(work / "student" / "checkpoints") == step + 1 < 300
    assert not (work / "student" / "manifest.json").exists()
    for folder in (work, tmp_path / "whole"):
        assert dkd("train", recipe, f"workdir={folder}").returncode == 0
    name = "student/export/model.safetensors"
    assert (work / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def running_ranks(training: subprocess.Popen[str]) -> list[int]:
    """The ranks' process numbers, once steps are taken."""
    deadline = time.monotonic() + 300
    while True:
        assert training.poll() is None and time.monotonic() < deadline
        ranks = {}
        for one in psutil.Process(training.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it is no longer there
                if "distributed_kd.student.worker" in one.cmdline()[:4]:
                    ranks[one.pid] = Path(one.cmdline()[-1])
        if len(ranks) == 2 and all((folder / "progress.json").exists() for folder in ranks.values()):
            return list(ranks)
        time.sleep(0.05)


def start_training(recipe: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "distributed_kd.cli", "train", str(recipe)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def newest_step(checkpoints: Path) -> int:
    return max((int(marker.stem.removeprefix("step-")) for marker in checkpoints.glob("step-*.json")), default=0)


def wait_for_checkpoint(training: subprocess.Popen[str], checkpoints: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while newest_step(checkpoints) < step:
        assert training.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
