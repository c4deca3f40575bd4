"""docs/deploying.md and infra/ name the same files."""

from __future__ import annotations

import re

from tests.commands import ROOT

PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.yaml")]


def test_what_the_pages_name_is_there() -> None:
    named = {path for page in PAGES for path in re.findall(r"infra/[\w./-]*\w", page.read_text())}
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_what_is_there_has_its_place_on_the_page() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text()
    files = [path for path in (ROOT / "infra").rglob("*") if path.is_file() and path.suffix != ".dockerignore"]
    assert not [path for path in files if path.stem not in page]
