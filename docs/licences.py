"""Writes `docs/licences.md`, the licence of each package that an installation brings: `make sbom`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE = Path(__file__).with_name("licences.md")
PROJECT = "distributed-kd"
# Extras of those who change the project; the others are of those who use it.
OF_DEVELOPERS = {"docs", "fuzz", "mutants", "test"}


def brought(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """Canonical names of all packages here that installing `name[extras]` brings, itself among them."""
    found: set[str] = set()
    waiting = [(name, extras)]
    seen = set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        package, wanted = current
        found.add(canonicalize_name(package))
        waiting += [(one.name, frozenset(one.extras)) for one in _requirements(package, wanted)]
    return found


def _requirements(package: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """Those that are installed: what another system or an extra that is not there needs is left out."""
    for line in distribution(package).requires or []:
        required = Requirement(line)
        if required.marker is None or any(required.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            try:
                distribution(required.name)
            except PackageNotFoundError:
                continue
            yield required


def licences() -> dict[str, str]:
    """The licence of each package that users of the project get, by its canonical name."""
    extras = set(distribution(PROJECT).metadata.get_all("Provides-Extra") or []) - OF_DEVELOPERS
    names = brought(PROJECT, frozenset(extras)) - {PROJECT}
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json", "--packages", *sorted(names)]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {canonicalize_name(row["Name"]): row["License"] for row in rows}


def page() -> str:
    lines = [
        "# Licences",
        "",
        "Of each package that `distributed-kd` and its extras for users bring, as the package itself says. Made by",
        "`make sbom` in an environment of the versions in `constraints.txt`; where torch is built for CUDA it brings",
        "NVIDIA's libraries as well, under NVIDIA's own terms. `tests/test_licences.py` has those that are allowed.",
        "",
        "| package | licence |",
        "|---|---|",
    ]
    return "\n".join([*lines, *(f"| {name} | {licence} |" for name, licence in sorted(licences().items()))]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
