"""What `make` makes before a release, and its hunts, for seconds: the targets themselves, in a copy of the files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.commands import ROOT
from tests.test_packaging import check_wheel

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What git knows of, and what it has not been told to ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    named = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, named.split("\0")):
        target = tmp_path / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment of a release's tools, for all tests here."""
    folder = tmp_path_factory.mktemp("release")
    for name in ("Makefile", "constraints.txt"):
        shutil.copy2(ROOT / name, folder / name)
    subprocess.run(["make", ".venv-release/installed", f"PYTHON={sys.executable}"], cwd=folder, check=True)
    return folder / ".venv-release" / "bin"


def make(copy: Path, target: str, *settings: str) -> str:
    """What it prints, with this environment in the place of `.venv`."""
    there = ["--old-file=.venv/installed", "--old-file=.venv-release/installed"]
    command = ["make", *there, target, f"BIN={Path(sys.executable).parent}", *settings]
    own = os.environ | {"PYTHONPATH": str(copy), "PIP_CONSTRAINT": str(copy / "constraints.txt")}
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_a_commit_is_held_to_the_hooks(copy: Path, tmp_path: Path) -> None:
    """`pre-commit run --all-files` passes, and a file with a fault does not."""
    (copy / ".venv").symlink_to(Path(sys.executable).parent.parent)
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)
    subprocess.run(["git", "add", "--all"], cwd=copy, check=True)
    run = [sys.executable, "-m", "pre_commit", "run"]
    own = os.environ | {"PRE_COMMIT_HOME": str(tmp_path / "hooks"), "PYTHONPATH": str(copy)}
    done = subprocess.run([*run, "--all-files"], cwd=copy, env=own, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("Passed") == 3, done.stdout
    fault = copy / "distributed_kd" / "fault.py"
    fault.write_text("import os\n")
    subprocess.run(["git", "add", fault], cwd=copy, check=True)
    done = subprocess.run([*run, "ruff", "--files", fault], cwd=copy, env=own, capture_output=True, text=True)
    assert done.returncode == 1 and "F401" in done.stdout, done.stdout


def test_what_is_published(copy: Path, release: Path, tmp_path: Path) -> None:
    """sdist and wheel as PyPI wants them; the sdist has what a build and its tests need, and installs alone."""
    assert make(copy, "dist", f"RELEASE={release}").count("PASSED") == 2
    [wheel], [sdist] = (copy / "dist").glob("*.whl"), (copy / "dist").glob("*.tar.gz")
    assert wheel.name.startswith("distributed_kd-")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "tests/test_make.py", "docs/report.md"} <= names
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", sdist]
    subprocess.run(install, check=True)
    check_wheel(sys.executable, tmp_path / "site", PYTHONPATH=str(tmp_path / "site"))


def test_the_bill_of_materials_names_every_constrained_package(copy: Path, release: Path) -> None:
    make(copy, "sbom", f"RELEASE={release}")
    bill = json.loads((copy / "sbom.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    listed = {(canonicalize_name(one["name"]), one["version"]) for one in bill["components"]}
    pinned = {
        (canonicalize_name(name), version)
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    }
    # The environment's own folder alone: whatever imports setuptools puts the packages that it vendors on sys.path.
    here = {canonicalize_name(one.name) for one in distributions(path=[sysconfig.get_path("purelib")])}
    wanted = {name for name, _ in pinned if name in here}
    assert len(wanted) > 200
    assert not wanted - {name for name, _ in listed}
    assert (copy / "docs/licences.md").read_text().count("\n| ") > 50


@pytest.mark.long  # a minute of imports with coverage
def test_a_few_seconds_of_fuzzing(copy: Path) -> None:
    assert "compact-1" in make(copy, "fuzz", "SECONDS=5")


@pytest.mark.long
def test_a_few_mutants(copy: Path) -> None:
    assert "killed" in make(copy, "mutants", "SAMPLE=2", "GROUPS=cache")
