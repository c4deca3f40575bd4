"""The code blocks of the pages in docs/, to be run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from tests.commands import ROOT, dkd

_HEADING = re.compile(r"^##+ +(.*)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def block(page: str, heading: str, language: str = "python") -> str:
    """The code of the one block of that language under a heading of `docs/<page>`."""
    text = (ROOT / "docs" / page).read_text()
    parts = _HEADING.split(text)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    found = [code for kind, code in _BLOCK.findall(sections[heading]) if kind == language]
    assert len(found) == 1, f"{heading} has {len(found)} blocks of {language}"
    return found[0]


def run_command(page: str, heading: str) -> str:
    """Runs the section's `dkd` command, in the working directory; what it printed. Raises where it fails."""
    program, *arguments = shlex.split(block(page, heading, "bash"))
    assert program == "dkd"
    done = dkd(*arguments, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_block(page: str, heading: str) -> dict[str, Any]:
    """Runs the section's Python block in this process; what it has defined at the end, by name."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block(page, heading), f"{page}, {heading}", "exec"), names)
    return names
