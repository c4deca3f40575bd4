"""What the files under infra/ call, looked up: commands, recipes and the versions that are tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import typer

from distributed_kd.cli import app
from distributed_kd.recipe import Recipe, load
from tests.commands import ROOT


def checked_recipe(command: list[str], files: dict[str, Path]) -> Recipe:
    """The recipe of `dkd STAGE RECIPE [KEY=VALUE ...]`, where the path that it names lies elsewhere."""
    program, stage, path, *overrides = command
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert stage in typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return load(files[path], overrides)


def constrained(package: str) -> str:
    """The version of constraints.txt."""
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE | re.IGNORECASE)
    assert found is not None
    return found[1]
