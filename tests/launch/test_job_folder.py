"""What `dkd submit` would send, without a cluster: a dry run, what is left out, what is too large, and no secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distributed_kd.errors import RequestError
from distributed_kd.launch import job_folder as folders
from distributed_kd.launch.job_folder import job_folder
from distributed_kd.launch.runtime_env import runtime_env
from distributed_kd.recipe import parse
from tests.commands import ROOT, dkd, write_recipe


def test_a_dry_run_names_every_file_and_asks_no_cluster(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, toy_recipe | {"workdir": "work"})
    done = dkd("submit", "cache", recipe, "--dry-run", "--json", "--address", "http://no-such-host:1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    assert (sent["address"], sent["entrypoint"]) == ("http://no-such-host:1", "python jobs/cache.py recipe.yaml")
    assert sent["runtime_env"] == {"env_vars": {"PYTHONPATH": "."}}
    assert sent["recipe.yaml"]["workdir"] == str(tmp_path / "work"), "the job runs somewhere else"
    files = sent["working_dir"]["files"]
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "distributed_kd").rglob("*.py")}
    assert files.keys() - code == {
        "jobs/cache.py", "recipe.yaml", "distributed_kd/py.typed", "distributed_kd/evaluate/page/report.html.j2",
        "distributed_kd/evaluate/page/style.css",
    }  # fmt: skip
    assert code <= files.keys()
    assert sent["working_dir"]["bytes"] == sum(files.values())
    assert not (tmp_path / "work").exists()


def test_what_is_written_is_what_was_listed(
    toy_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    monkeypatch.chdir(tmp_path)
    toy_recipe["trainer"]["deepspeed"] = "zero.json"
    makers = {**toy_recipe, "trainer": toy_recipe["trainer"] | {"deepspeed": "makers.json"}}
    (tmp_path / "makers.json").write_text("{}")
    (tmp_path / "maker.yaml").write_text(yaml.safe_dump(makers))
    toy_recipe["teachers"] = [{"recipe": "maker.yaml", "overrides": [f"workdir={tmp_path}/teacher"]}]
    made = job_folder("train", parse(toy_recipe))
    made.write(tmp_path / "job")
    found = {str(path.relative_to(tmp_path / "job")): path for path in (tmp_path / "job").rglob("*") if path.is_file()}
    assert {name: path.stat().st_size for name, path in found.items()} == made.sizes
    assert found["zero.json"].read_bytes() == (tmp_path / "zero.json").read_bytes()
    assert "deepspeed: zero.json\n" in found["recipe.yaml"].read_text()
    assert found["maker.yaml"].read_bytes() == (tmp_path / "maker.yaml").read_bytes()
    assert found["makers.json"].read_text() == "{}"


def test_files_that_have_no_place_in_the_folder_are_named(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "zero.json").write_text("{}")
    maker = write_recipe(tmp_path, toy_recipe)
    teachers = [{"recipe": str(maker), "model": toy_recipe["teachers"][0]["model"]}]
    toy_recipe["trainer"]["deepspeed"] = "../zero.json"
    recipe = write_recipe(tmp_path / "here", toy_recipe | {"teachers": teachers})
    done = dkd("submit", "train", recipe, "--dry-run", cwd=tmp_path / "here")
    assert done.returncode == 0, done.stderr
    sent = yaml.safe_load(done.stdout)  # without --json it is read by people, as YAML
    assert list(sent) == ["address", "entrypoint", "runtime_env", "recipe.yaml", "working_dir"]
    assert sent["entrypoint"] == "python jobs/train.py recipe.yaml"
    assert sent["working_dir"]["excluded"][-2:] == ["../zero.json", str(maker)]
    assert "zero.json" not in sent["working_dir"]["files"]


def test_a_large_file_in_the_package_is_named_and_what_is_hidden_stays_here(
    toy_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "distributed_kd"
    for name in ("cli.py", ".env", "__pycache__/cli.pyc", "models/.cache/part"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("1")
    monkeypatch.setattr(folders, "PACKAGE", package)
    recipe = parse(toy_recipe)
    made = job_folder("cache", recipe)
    assert made.excluded == ["distributed_kd/.env", "distributed_kd/__pycache__", "distributed_kd/models/.cache"]
    assert made.sizes.keys() == {"distributed_kd/cli.py", "jobs/cache.py", "recipe.yaml"}
    with (package / "weights.bin").open("wb") as weights:
        weights.truncate(20 << 20)
    with pytest.raises(RequestError, match=r"20\.0 MiB and may be 16: the largest file is distributed_kd/weights\.bin"):
        job_folder("cache", recipe)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("env_vars: {AWS_SECRET_ACCESS_KEY: hunter2}", r"env_vars\.AWS_SECRET_ACCESS_KEY holds a secret"),
        ("env_vars: {HF_TOKEN: 'Bearer ${HF_TOKEN}'}", r"write \$\{HF_TOKEN\}, and give it to the nodes"),
        ("env_vars: {wandb_api_key: hunter2}", r"env_vars\.wandb_api_key holds a secret"),
        ("pip: ['--index-url https://me:hunter2@index.example/simple']", r"pip\.0: a password or a signature in a URL"),
        ("env_vars: {PYTHONPATH: /x}", "PYTHONPATH is for dkd to say"),
        ("working_dir: .", "working_dir is for dkd to say"),
        ("env_vars: {A: 1}", "must be of type"),
        ("pip: 7", "pip"),
        ("- pip", "is not a mapping"),
        ("{", "is not YAML that can be read"),
        (None, "No such file"),
    ],
)
def test_a_runtime_env_that_is_refused(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "env.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RequestError, match=says) as refused:
        runtime_env(str(file))
    assert str(refused.value).startswith(f"--runtime-env {file}")
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_reference_and_what_only_sounds_like_a_secret_pass(tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    passed = {
        "HF_TOKEN": "${HF_TOKEN}", "TOKENIZERS_PARALLELISM": "false",
        "AWS_SHARED_CREDENTIALS_FILE": "/mnt/aws", "GOOGLE_APPLICATION_CREDENTIALS": "/mnt/gcp.json",
    }  # fmt: skip
    file.write_text(json.dumps({"env_vars": passed, "pip": ["s3fs"]}))
    found = runtime_env(str(file))
    assert found["env_vars"] == passed | {"PYTHONPATH": "."}
    assert found["pip"]["packages"] == ["s3fs"]
