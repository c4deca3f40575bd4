"""The code on the pages for people, found by CommonMark's own rules, to be run or checked as it stands there."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

from tests.commands import ROOT, dkd

PAGES = (
    "README.md", "CONTRIBUTING.md", "SECURITY.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)  # fmt: skip


class Code(NamedTuple):
    """A block, or the words between backticks of a text; `language` of an indented block is "indented"."""

    page: str
    line: int
    heading: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def code(page: str) -> tuple[list[Code], list[Code]]:
    """Blocks, and inline code, of a page (a path below the repository) in their order."""
    blocks, inline, heading, is_heading = [], [], "", False
    for token in MarkdownIt().enable("table").parse((ROOT / page).read_text()):
        line = token.map[0] + 1 if token.map else 0
        if token.type in ("fence", "code_block"):
            language = token.info.strip() if token.type == "fence" else "indented"
            blocks.append(Code(page, line, heading, language, token.content))
        elif token.type == "inline":
            heading = token.content if is_heading else heading
            parts = [part.content for part in token.children or [] if part.type == "code_inline"]
            inline += [Code(page, line, heading, "", part) for part in parts]
        is_heading = token.type == "heading_open"
    return blocks, inline


def block(page: str, heading: str, language: str = "python") -> str:
    """The code of the one block of that language under a heading of `docs/<page>`."""
    found = [one.text for one in code(f"docs/{page}")[0] if (one.heading, one.language) == (heading, language)]
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
