"""The page of a recipe's keys is what its generator writes; the site is built, and no link of it leads nowhere."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from distributed_kd.recipe import Recipe
from distributed_kd.recipe.section import section_of
from tests.commands import ROOT


def test_the_page_of_keys_is_that_of_the_models() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "recipe_keys.py"))["page"]()
    assert (ROOT / "docs" / "recipe-keys.md").read_text() == made, "run `python docs/recipe_keys.py`"
    keys = re.findall(r"^\| `(\w+)` \| (.+) \| (.*) \| (.*) \| (.*) \|$", made, flags=re.MULTILINE)
    assert len(keys) >= 100 and {"sequence_length", "head_chunk", "spike_factor"} <= {key for key, *_ in keys}
    assert [key for key, _, _, _, said in keys if not said] == []
    assert all(re.search(r"text|number|true|list|mapping|keys|`|of", kind) for _, kind, _, _, _ in keys)


def sections(section: type[BaseModel], place: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield place, section
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            yield from sections(inner, f"{place}{name}.")


def test_each_number_of_a_recipe_has_its_unit() -> None:
    found, said = set(), set()
    for place, section in sections(Recipe):
        said |= {place + name for name in getattr(section, "units", {})}
        for name, field in section.model_fields.items():
            is_number = re.search(r"\b(?:int|float)\b", str(field.annotation))
            found |= {place + name} if is_number and section_of(field.annotation) is None else set()
    assert len(found) > 60 and found == said


def test_the_site_is_built_strictly_and_asks_for_nothing_outside_itself(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "index.html").read_text()
    assert "Distributed KD" in first and 'href="recipe-keys/"' in first
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://", first)
