"""What is installed: light to import, whole in a wheel, completed by shells, checked before a commit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from distributed_kd import __version__
from tests.commands import ROOT

HEAVY = ("torch", "transformers", "deepspeed", "ray", "numpy", "pyarrow", "pydantic", "rich", "fsspec")


def test_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, distributed_kd.cli, distributed_kd.stages; assert not {set(HEAVY)} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_what_looks_or_only_hands_out_work_does_not_load_torch() -> None:
    """Four seconds, and most of the memory, of a command; a driver of a capture lives for days."""
    looking = (
        "distributed_kd.status, distributed_kd.cache.inspect, distributed_kd.cache.verify, distributed_kd.evaluate.card"
    )
    code = f"import sys, {looking}, distributed_kd.teacher.capture; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("shell", "variables"),
    [
        ("bash", {"COMP_WORDS": "dkd ver", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "dkd ver"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "dkd ver", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_shells_complete_commands(shell: str, variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "distributed_kd.cli"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | variables | {"_DKD_COMPLETE": f"complete_{shell}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"\bverify\b", done.stdout) and "audit" not in done.stdout


def test_a_commit_is_checked_by_what_make_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [one["repo"] for one in hooks] == ["local"], "nothing is fetched"
    checked = {" ".join(hook["entry"].split()).replace(" --force-exclude", "") for hook in hooks[0]["hooks"]}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint is not None
    made = {line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in lint[1].splitlines()}
    assert checked == made


def test_pre_commit_takes_its_file() -> None:
    clientlib = pytest.importorskip("pre_commit.clientlib", reason="pre-commit is not installed")
    clientlib.load_config(ROOT / ".pre-commit-config.yaml")


def test_annotations_are_ones_that_python_3_10_evaluates() -> None:
    """pydantic evaluates them when a module is imported, and 3.10 refuses a ClassVar that does not say of what."""
    found = [
        path for path in (ROOT / "distributed_kd").rglob("*.py") if re.search(r": ClassVar\b(?!\[)", path.read_text())
    ]
    assert found == []


@pytest.mark.slow
def test_a_wheel_has_all_that_commands_read(tmp_path: Path) -> None:
    """Alone in a folder, with the dependencies of this environment: help, and each recipe loads."""
    wheel = wheel_in(tmp_path)
    assert wheel.name.startswith(f"distributed_kd-{__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    check_wheel(sys.executable, tmp_path / "site", PYTHONPATH=str(tmp_path / "site"))


@pytest.mark.slow
@pytest.mark.long  # torch and all else is installed
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_a_wheel_alone_in_a_clean_environment(version: str, tmp_path: Path) -> None:
    """Nothing but it and what it asks for, at the constraints' versions; several of those are not for 3.10."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    subprocess.run([python, "-m", "venv", tmp_path / "own"], check=True)
    own = tmp_path / "own/bin/python"
    constraints = ROOT / "constraints.txt"
    if version == "3.10":
        torch = re.search(r"^torch==.*$", constraints.read_text(), re.MULTILINE)
        assert torch is not None
        constraints = tmp_path / "constraints.txt"
        constraints.write_text(torch[0])
    install = [own, "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel_in(tmp_path)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_wheel(own, tmp_path / "own")


def wheel_in(folder: Path) -> Path:
    made = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(made, check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def interpreter(version: str) -> str | Path | None:
    """A Python that starts: a shim of pyenv's may be of a version that it has not chosen."""
    found = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for one in filter(None, found):
        if subprocess.run([one, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0:
            return one
    return None


def check_wheel(python: str | Path, place: Path, **environment: str) -> None:
    """Away from a checkout: the package is below `place`, all its recipes load, and it tells its commands."""
    code = (
        f"import distributed_kd; assert distributed_kd.__file__.startswith({str(place)!r}), distributed_kd.__file__\n"
        "from distributed_kd.bundled import bundled\n"
        "from distributed_kd.recipe import load\n"
        "recipes = sorted(bundled('recipes').glob('*.yaml'))\n"
        "print(len([load(path) for path in recipes]))\n"
        "from distributed_kd.cli import main; main(['--help'])\n"
    )
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run([python, "-c", code], cwd=place, capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{len(list((ROOT / 'recipes').glob('*.yaml')))}\n")
    assert "\n  doctor " in done.stdout
