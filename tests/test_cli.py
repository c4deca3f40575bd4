"""The command line: help at once, features that are not there yet in a line, bad requests in a line and exit 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distributed_kd import stages
from distributed_kd.errors import RequestError
from distributed_kd.recipe import load
from tests import toys
from tests.commands import dkd, said, write_recipe


def test_help_names_every_command() -> None:
    done = dkd("--help")
    assert done.returncode == 0
    for command in (
        "demo", "run", "prepare", "cache", "train", "evaluate", "plan", "audit", "inspect", "verify", "repair",
        "merge", "export", "submit", "status", "doctor",
    ):  # fmt: skip
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["rnu"],
        ["run"],
        ["verify", "nowhere"],
        ["status", "nowhere"],
        ["export", "nowhere", "--out", "y"],
        ["run", "x.yaml", "--jsno"],
        ["run", "nowhere.yaml"],
        ["plan", "nowhere.yaml", "--positions", "0"],
    ],
)
def test_a_request_that_cannot_be_read_exits_2(arguments: list[str]) -> None:
    done = dkd(*arguments)
    assert done.returncode == 2
    assert said(done)


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in dkd("run", "nowhere.yaml", "--debug").stderr


def set_key(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        data = data[int(name)] if isinstance(data, list) else data[name]
    data[last] = value


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("corpus.source", "/nowhere/at/all", "corpus.source /nowhere/at/all: nothing is there"),
        ("corpus.sequence_length", 65, "corpus.sequence_length 65 is beyond the teacher's 64 positions"),
        ("teachers.0.model", "./nowhere", "model ./nowhere: there is no such folder"),
        ("workdir", "/proc/nowhere", "workdir /proc/nowhere/sequences cannot be written"),
        ("corpus.source", "s3x://bucket/texts", "s3x://bucket/texts is not a path or URL"),
    ],
)
def test_prepare_refuses_in_one_line(
    toy_recipe: dict[str, Any], tmp_path: Path, key: str, value: Any, expected: str
) -> None:
    set_key(toy_recipe, key, value)
    done = dkd("prepare", write_recipe(tmp_path, toy_recipe))
    assert done.returncode == 2
    assert expected in said(done)


def test_stages_ask_for_the_one_before_them(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, toy_recipe)
    for stage, missing in (
        ("cache", "dkd prepare"),
        ("plan", "dkd prepare"),
        ("train", "dkd cache"),
        ("evaluate", "dkd prepare"),
    ):
        done = dkd(stage, recipe)
        assert done.returncode == 2
        assert f"run `{missing}` first" in said(done)


@pytest.mark.slow
def test_a_file_that_is_not_utf8_is_named_with_its_offset_and_nothing_is_left(
    toy_recipe: dict[str, Any], toy_corpus: Path, tmp_path: Path
) -> None:
    source = tmp_path / "texts"
    shutil.copytree(toy_corpus, source)
    (source / "document-007.txt").write_bytes(b"w1 w2 \xff w3")
    toy_recipe["corpus"]["source"] = str(source)
    done = dkd("prepare", write_recipe(tmp_path, toy_recipe))
    assert done.returncode == 2
    assert "document-007.txt is not UTF-8: byte 6" in said(done)
    assert not (Path(toy_recipe["workdir"]) / "sequences" / "manifest.json").exists()


@pytest.mark.slow
def test_refusals_over_finished_artifacts_write_nothing_over(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    """One capture, then every request that does not fit it."""
    recipe = write_recipe(tmp_path, toy_recipe)
    work = Path(toy_recipe["workdir"])

    def refuses(stage: str, *overrides: str) -> str:
        """In this process: the command gives what is raised its exit code and prints it, for every refusal alike."""
        before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
        with pytest.raises(RequestError) as refusal:
            getattr(stages, stage)(load(recipe, overrides))
        changed = [path for path, data in before.items() if path.read_bytes() != data]
        assert not changed
        assert refusal.value.exit_code == 2 and "\n" not in str(refusal.value)
        return str(refusal.value)

    done = dkd("prepare", recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["splits"]["train"]["sequences"] > 0
    assert "corpus.sequence_length: 16, not 8" in refuses("prepare", "corpus.sequence_length=8")
    assert 'corpus.packing: "concatenate", not "isolate"' in refuses("cache", "corpus.packing=isolate")
    assert "targets.k 73 is more than the 72 ids" in refuses("cache", "targets.k=73")

    other = toys.save_model(tmp_path / "other", layers=1, seed=3)
    toys.save_tokenizer(other, [*toys.WORDS[1:], toys.WORDS[0]])
    line = refuses("cache", f"teachers.0.model={other}")
    assert "the teacher's tokenizer is not the sequences'" in line
    assert str(other) in line

    done = dkd("cache", recipe, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["missing_shards"] == []
    assert facts["codec"] == "plain-1"
    assert json.loads(dkd("inspect", work / "cache", "--json").stdout) == facts
    assert "targets.k: 8, not 4" in refuses("cache", "targets.k=4")
    assert "targets.temperatures: [1.0,2.0], not [2.0,4.0]" in refuses("cache", "targets.temperatures=[2.0,4.0]")
    assert "teacher.revision: nothing, not " in refuses("cache", "teachers.0.revision=abc")
    assert "corpus.sequence_length: 16, not 12" in refuses("train", "corpus.sequence_length=12")
    assert "corpus.packing: " in refuses("evaluate", "corpus.packing=none")
    assert "targets.k: 8, not 4" in refuses("train", "targets.k=4")
    assert "capture.batch_tokens: 64, not 32" in refuses("train", "capture.batch_tokens=32")
    assert "is not in targets.temperatures" in refuses("train", "objective.temperature=3")

    line = refuses("train", f"student.model={other}")
    assert "the student's tokenizer is not the cache's" in line
    assert str(other) in line
    short = toys.save_model(tmp_path / "short", layers=1, seed=3, max_position_embeddings=8)
    assert "beyond the student's 8 positions" in refuses("train", f"student.model={short}")
    assert "is not a multiple of processes x micro_batch (3 x 4)" in refuses("train", "trainer.processes=3")
    assert "trainer.deepspeed says bf16; say it as trainer.precision" in refuses(
        "train", "trainer.deepspeed={bf16: {enabled: true}}"
    )
    assert "names no parameter" in refuses("train", "student.freeze=[lyers.0]")

    # Sequences prepared anew from other text: the cache is of other sequences, and the difference is listed.
    shutil.rmtree(work / "sequences")
    (Path(toy_recipe["workdir"]).parent / "texts").mkdir()
    toys.write_corpus(Path(toy_recipe["workdir"]).parent / "texts", documents=30)
    assert dkd("prepare", recipe, f"corpus.source={tmp_path / 'texts'}").returncode == 0
    assert "sequences: " in refuses("train")
    assert "sequences: " in refuses("cache")


@pytest.mark.slow
def test_a_disk_too_small_for_the_cache_is_said_before_the_capture(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    """A real small disk: a tmpfs of 200 KB, on which the sequences fit and the planned cache does not."""
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs to be root")
    try:
        toy_recipe |= {"workdir": str(disk / "work"), "targets": {"k": 64}}
        toy_recipe["objective"]["temperature"] = 1.0
        recipe = write_recipe(tmp_path, toy_recipe)
        done = dkd("prepare", recipe)
        assert done.returncode == 0, done.stderr
        (disk / "filler").write_bytes(b"\0" * 100_000)
        done = dkd("cache", recipe)
        assert done.returncode == 2
        assert "GB free and the cache needs about" in said(done)
        assert not (disk / "work" / "cache").exists() or not list((disk / "work" / "cache").iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)
