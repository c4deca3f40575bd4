"""Every command tells what it does where it takes more than a moment, and says nothing beside its result in JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.cache.manifest import CacheManifest
from distributed_kd.store.filesystem import Store
from tests.commands import AT_ONCE, dkd, write_recipe
from tests.teacher.served import log_probabilities, training_sequences, vllm_answer, write_json_lines

pytestmark = pytest.mark.slow


def tells(arguments: list[str], line: str, output: str, cwd: Path) -> None:
    """Runs it in `cwd`: what it does is told, by a line that begins so; in JSON it is not."""
    done = dkd(*arguments, *(["--json"] if output == "json" else []), cwd=cwd, program=AT_ONCE)
    assert done.returncode == 0, done.stderr
    told = [one for one in done.stderr.splitlines() if one.startswith(line)]
    assert bool(told) == (output == "plain"), done.stderr
    if output == "json":
        json.loads(done.stdout)
        assert not [one for one in done.stderr.splitlines() if "after" in one or "reading" in one], done.stderr


# JSON quietens one console (tests/test_console.py); that no command has another way to speak is a long test.
OUTPUTS = pytest.mark.parametrize("output", ["plain", pytest.param("json", marks=pytest.mark.long)])


@OUTPUTS
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["inspect", "work/cache"], "reading the index of "),
        (["inspect", "begun/cache"], "reading the receipts of "),
        (["status", "work"], "reading the index of "),
        (["verify", "work/cache"], "verify: "),
        (["repair", "recipe.yaml"], "verify: "),
        (["export", "work/cache", "--out", "work.parquet"], "export: "),
        (["merge", "work/cache", "other/cache", "--out", "merged"], "writing the index of "),
        (["audit", "work/cache", "--positions", "64"], "audit: "),
        (["plan", "recipe.yaml", "--positions", "64"], "plan: "),
        (["cache", "recipe.yaml", "workdir=begun"], "writing the index of "),
        (["prepare", "recipe.yaml", "workdir=fresh"], "survey: "),
        pytest.param(["doctor", "recipe.yaml"], "doctor: ranks", marks=pytest.mark.long),  # ranks start, twice
    ],
    ids=lambda one: " ".join(one[:2]) if isinstance(one, list) else "",
)
def test_what_a_command_does_is_told(
    arguments: list[str], line: str, output: str, prepared_recipe: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("work", "other", "begun"):
        shutil.copytree(prepared_recipe["workdir"], tmp_path / name)
    store = Store(str(tmp_path / "begun/cache"))
    manifest = CacheManifest.read(store)
    assert manifest is not None
    manifest.model_copy(update={"index": None, "bytes_by_part": None, "mean_kept_mass": None}).put(store)
    write_recipe(tmp_path, prepared_recipe | {"workdir": "work"})
    tells(arguments, line, output, tmp_path)


@OUTPUTS
def test_what_an_import_does_is_told(output: str, prepared_recipe: dict[str, Any], tmp_path: Path) -> None:
    targets, objective = {"k": 4}, {"temperature": 1.0, "alpha": 0.5}
    teacher = Path(prepared_recipe["teachers"][0]["model"])
    answers = [
        vllm_answer(one, log_probabilities(teacher, one), 4)
        for one in training_sequences(Path(prepared_recipe["workdir"]))
    ]
    shutil.copytree(Path(prepared_recipe["workdir"]) / "sequences", tmp_path / "work/sequences")
    write_recipe(tmp_path, prepared_recipe | {"workdir": "work", "targets": targets, "objective": objective})
    write_json_lines(tmp_path / "answers.jsonl", answers)
    tells(["import", "recipe.yaml", "--from", "answers.jsonl", "--format", "vllm"], "import: read", output, tmp_path)


@pytest.mark.long  # ranks start
@pytest.mark.parametrize("output", ["plain", "json"])
def test_what_training_and_its_report_do_is_told(output: str, prepared_recipe: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(prepared_recipe["workdir"], tmp_path / "work")
    write_recipe(tmp_path, prepared_recipe | {"workdir": "work"})
    tells(["train", "recipe.yaml", "trainer.steps=2"], "student: ", output, tmp_path)
    tells(["evaluate", "recipe.yaml", "trainer.steps=2"], "evaluate: ", output, tmp_path)
