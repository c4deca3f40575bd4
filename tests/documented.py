"""Commands as the pages write them, each taken apart by the program that it calls, without being run."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from typing import Any, get_args
from unittest import mock

import typer
import yaml
from pydantic import BaseModel, TypeAdapter

from distributed_kd.cli import app
from distributed_kd.recipe import Recipe, load
from tests.commands import ROOT
from tests.pages import Code, code

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# What the pages call a recipe of the reader's own: the one that the README shows.
OWN_RECIPES = ("mine.yaml", "RECIPE")
STAGES = {"prepare", "cache", "train", "evaluate", "run"}
# Programs that are not at hand, or of others' making: the test that holds what the pages say of each.
ELSEWHERE = {
    "docker": "tests/infra/test_docker.py::test_the_steps_make_an_environment_in_which_the_command_runs",
    "kubectl": "tests/infra/test_kuberay.py::test_kuberay_takes_it",
    "lm_eval": "tests/test_use_a_part.py::test_the_student_in_lm_eval",
    "ray": "tests/infra/test_ray.py::test_ray_up_takes_the_cluster",
    "sbatch": "tests/infra/test_slurm.py::test_a_training_is_stopped_requeued_and_finished",
    "scancel": "tests/infra/test_slurm.py::test_a_training_is_stopped_requeued_and_finished",
    "srun": "tests/launch/test_slurm.py::test_srun_trains_both_arms_and_tells_one_line",
    "tensorboard": "tests/student/test_tracking.py::test_a_resumed_run_writes_over_what_came_after_its_step",
    "wandb": "tests/student/test_trackers.py::test_wandb_goes_on_with_its_run",
}


class _Parsed(BaseException):
    """Raised where a script has read its arguments and would begin its work."""


def commands(written: Code) -> list[list[str]]:
    """The words of each command, without comments, optional parts in brackets and variables before it.

    Raises ValueError where quotes do not close.
    """
    found = []
    for line in written.text.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            words = shlex.split(re.sub(r"\[[A-Z=]+ \.\.\.\]", "", part), comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def resolve(words: list[str]) -> None:
    """Raises where a command names what there is not: a program, an option, a file, a recipe key, a target."""
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    if program in RESOLVERS:
        RESOLVERS[program](arguments)
    elif program not in ELSEWHERE:
        raise ValueError(f"{program} is no program that the pages may call; see tests/documented.py")
    for word in arguments:
        if word.startswith(("infra/", "benchmarks/", "recipes/", "tests/")) and not (ROOT / word).exists():
            raise ValueError(f"there is no {word}")
    if program == "srun":  # it starts ours
        resolve(arguments[arguments.index("dkd") :])


def _dkd(arguments: list[str]) -> None:
    if not arguments:
        return
    name, *rest = arguments
    program = typer.main.get_command(app)
    known = program.commands  # type: ignore[attr-defined]
    if name in {"--help", *(option for parameter in program.params for option in parameter.opts)}:
        return
    if name not in known:
        raise ValueError(f"dkd has no command {name}")
    if not rest:  # in a text, a command by its name
        return
    given = known[name].make_context(name, list(rest)).params
    if given.get("stage", "run") not in STAGES:
        raise ValueError(f"dkd submit has no stage {given['stage']}")
    if "recipe" in given and given["recipe"] is not None:
        read_recipe(given["recipe"], given["overrides"] or [])


def read_recipe(path: str, overrides: list[str]) -> None:
    """Raises `RequestError` where the recipe does not take the overrides."""
    if path not in OWN_RECIPES:
        load(ROOT / path, overrides)
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(own_recipe())
        file.flush()
        load(file.name, overrides)


def own_recipe() -> str:
    """The README's recipe."""
    [text] = [one.text for one in code("README.md")[0] if one.language == "yaml"]
    return text


def _python(arguments: list[str]) -> None:
    """A script of ours reads its own arguments; words in capitals stand for a reader's own, 1 where a number is."""
    script, *rest = arguments
    if script.startswith("-"):
        raise ValueError(f"python {script}: only scripts of the repository are checked")
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *given: object, **named: object) -> None:
        try:
            parse(self, *given, **named)  # type: ignore[call-overload]
        except SystemExit as error:
            raise ValueError(f"{script} does not take {shlex.join(rest)}") from error
        raise _Parsed

    paths = [str(ROOT), str(ROOT / script.rpartition("/")[0]), *sys.path]
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_only),
        mock.patch.object(sys, "argv", [script, *rest]),
        mock.patch.object(sys, "path", paths),
        mock.patch.dict(os.environ),
    ):
        main = runpy.run_path(str(ROOT / script), run_name="documented").get("main")
        try:
            if main is not None and script.startswith("benchmarks/"):
                main()
        except _Parsed:
            return
    if rest:
        raise ValueError(f"{script} takes no arguments")


def _make(arguments: list[str]) -> None:
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip())


def _pip(arguments: list[str]) -> None:
    """Ours has the extra; others' packages are among the constraints, or named by an extra."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--no-deps", action="store_true")
    parser.add_argument("what", choices=["install"])
    parser.add_argument("requirement")
    name, _, extras = parser.parse_args(arguments).requirement.partition("[")
    if name == PROJECT["project"]["name"]:
        for extra in extras.rstrip("]").split(","):
            if extra not in PROJECT["project"]["optional-dependencies"]:
                raise ValueError(f"there is no extra {extra}")
    elif f"\n{name}==" not in (ROOT / "constraints.txt").read_text().replace("_", "-"):
        raise ValueError(f"{name} is not in constraints.txt")


def _pytest(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("-m", default="")
    parser.add_argument("-k", default="")
    parser.add_argument("-s", action="store_true")
    parser.add_argument("paths", nargs="*", default=["tests"])
    given = parser.parse_args(arguments)
    marks = {mark.partition(":")[0] for mark in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    if unknown := set(re.findall(r"\w+", given.m)) - marks - {"not", "and", "or"}:
        raise ValueError(f"no test is marked {unknown}")
    tests = [path.read_text() for folder in given.paths for path in (ROOT / folder).rglob("test_*.py")]
    if not any(re.search(rf"def test_\w*{given.k}", text) for text in tests):
        raise ValueError(f"no test below {given.paths} has {given.k} in its name")


def _torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(["0" if word == "N" else word for word in arguments])
    _module(given.training_script, given.training_script_args)


def _deepspeed(arguments: list[str]) -> None:
    from deepspeed.launcher.runner import parse_args

    if arguments:
        given = parse_args(["0" if word == "N" else word for word in arguments])
        _module(given.user_script, given.user_args)


def _docker(arguments: list[str]) -> None:
    stage = arguments[arguments.index("--target") + 1]
    if not re.search(rf"^FROM .* AS {stage}$", (ROOT / "infra/docker/Dockerfile").read_text(), re.MULTILINE):
        raise ValueError(f"the Dockerfile has no stage {stage}")


def _kubectl(arguments: list[str]) -> None:
    """What is created and applied is what the manifests ask for and are; what is asked for has their names."""
    manifests = "".join(path.read_text() for path in sorted((ROOT / "infra" / "kuberay").glob("*.yaml")))
    line = " ".join(arguments)
    for form, asked in (
        (r"create secret generic (\S+)( --from-literal=[A-Z_]+=\S+)*", "secretRef: {{name: {},"),
        (r"create configmap (\S+) --from-file=\S+=(?P<file>\S+)", "configMap: {{name: {}}}"),
        (r"apply -f (?P<file>infra/kuberay/\S+)", ""),
        (r"port-forward service/(\S+)-head-svc \d+", "\nmetadata:\n  name: {}\n"),
        (r"get secret (\S+) -o jsonpath=\S+", "\nmetadata:\n  name: {}\n"),
    ):
        if found := re.fullmatch(form, line):
            if not (ROOT / (found.groupdict().get("file") or ".")).exists():
                raise ValueError(f"there is no {found['file']}")
            if asked.format(found[1]) not in manifests:
                raise ValueError(f"no manifest has {asked.format(found[1])}")
            return
    raise ValueError(f"kubectl {line}: no such command is known here")


def _module(name: str, arguments: list[str]) -> None:
    if name != PROJECT["project"]["scripts"]["dkd"].partition(":")[0]:
        raise ValueError(f"{name} is not our command line")
    _dkd(arguments)


RESOLVERS: dict[str, Callable[[list[str]], None]] = {
    "deepspeed": _deepspeed, "dkd": _dkd, "docker": _docker, "kubectl": _kubectl, "make": _make, "pip": _pip,
    "pytest": _pytest, "python": _python, "torchrun": _torchrun,
}  # fmt: skip


def settings(text: str) -> list[tuple[str, str | None]]:
    """The recipe keys that inline code names, each with its value where one is given: `key=value` or `key: value`."""
    key = rf"(?:{'|'.join(Recipe.model_fields)})(?:\.[a-z0-9_]+)+"
    if re.search(r"\.(?:ya?ml|json|py)$", text):
        return []
    if found := re.fullmatch(rf"({key}): ([^;]+)", text):
        return [(found[1], found[2])]
    words = [re.fullmatch(rf"({key})(?:=(.+))?", word) for word in text.split()]
    return [(found[1], found[2]) for found in words if found] if all(words) else []


def check_setting(key: str, value: str | None) -> None:
    """Raises ValueError where the recipe's models have no such key, or its field does not take the value."""
    section: type[BaseModel] | None = Recipe
    annotation: Any = None
    for name in key.split("."):
        if name.isdigit():  # a place in a list
            continue
        if section is None:  # a mapping that others read, as DeepSpeed's
            return
        if name not in section.model_fields:
            raise ValueError(f"{section.__name__} has no key {name}")
        annotation = section.model_fields[name].annotation
        section = next((one for one in (annotation, *get_args(annotation)) if is_section(one)), None)
    if value is not None:
        TypeAdapter(annotation).validate_python(yaml.safe_load(value))


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
