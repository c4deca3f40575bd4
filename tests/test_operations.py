"""docs/operations.md has every line that the program can print about its work, and none that it cannot."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

from markdown_it import MarkdownIt

from tests.commands import ROOT

PAGE = ROOT / "docs" / "operations.md"
# What is raised, printed beside the work, or ends the command; and which argument is the line.
TELLING = {
    **dict.fromkeys(("DkdError", "RequestError", "WorkError", "StoreError", "FullDisk", "StoreRefused", "Stopped"), 0),
    **dict.fromkeys(("say", "_fail", "print"), 0),
    "kind": 0,  # one of those, in a variable
    "Verdict": 1,
    "Finding": 2,
}
# Where a ValueError's text becomes part of the user's line: of a recipe's keys, of a row of `dkd import`.
REFUSING = ("distributed_kd/recipe/", "distributed_kd/teacher/imported.py", "distributed_kd/teacher/position_lists.py")
GAP = "\N{HORIZONTAL ELLIPSIS}"
# A line with fewer letters of its own hands on what another one says: `{where}: {error}`.
LETTERS = 7


def line_of(node: ast.expr) -> str:
    """A line as the code has it, a gap for each value; empty where it is not written there."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(line_of(part) or GAP for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (line_of(node.left) or GAP) + (line_of(node.right) or GAP)
    return ""


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    files = [path for folder in ("distributed_kd", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [(str(path.relative_to(ROOT)), node) for path in files for node in ast.walk(ast.parse(path.read_text()))]


def told() -> Iterator[tuple[str, str]]:
    """Each line that the code tells, with where."""
    for file, node in nodes():
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = 0 if name == "ValueError" and file.startswith(REFUSING) else TELLING.get(name)
            if name == "print" and "sys.stderr" not in {ast.unparse(one.value) for one in node.keywords}:
                continue  # results
            if name == "Finding" and line_of(node.args[1]) == "ok":
                continue
            if place is not None and place < len(node.args):
                line = line_of(node.args[place])
                if sum(map(str.isalpha, line)) >= LETTERS:
                    yield f"{file}:{node.lineno}", line


def entries() -> list[str]:
    """The lines in the first column of the page's tables."""
    found, column = [], 0
    for token in MarkdownIt().enable("table").parse(PAGE.read_text()):
        if token.type == "tr_open":
            column = 0
        elif token.type == "td_open":
            column += 1
        elif token.type == "inline" and column == 1:
            found += [part.content.strip() for part in token.children or [] if part.type == "code_inline"]
            column += 1
    return found


def is_of(entry: str, line: str) -> bool:
    """Whether a line has the entry's words in their order, `...` standing for anything."""
    return re.search(".*".join(map(re.escape, entry.split("..."))), line) is not None


def test_every_line_has_its_entry() -> None:
    known, lines = entries(), list(told())
    assert len(lines) > 270
    missing = [f"{where}: {line}" for where, line in lines if not any(is_of(entry, line) for entry in known)]
    assert not missing, "\n".join(["docs/operations.md does not have:", *missing])


def test_every_entry_is_a_line_of_the_code() -> None:
    docstrings = {node.value for _, node in nodes() if isinstance(node, ast.Expr)}
    written = (node for _, node in nodes() if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp))
    lines = {line_of(node) for node in written if node not in docstrings}
    gone = [entry for entry in entries() if not any(is_of(entry, line) for line in lines)]
    assert not gone, f"docs/operations.md has what no code tells: {gone}"


def test_an_entry_says_enough_to_be_found_and_stands_once() -> None:
    known = entries()
    assert [entry for entry in known if sum(map(str.isalpha, entry)) < LETTERS] == []
    assert sorted(set(known)) == sorted(known)
