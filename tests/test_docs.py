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
    keys = re.findall(r"^\| `(\w+)` \| (.+) \| (.*) \| (.*) \|$", made, flags=re.MULTILINE)
    assert len(keys) >= 100 and {"sequence_length", "head_chunk", "spike_factor"} <= {key for key, *_ in keys}
    assert [key for key, _, _, said in keys if not said] == []
    assert all(re.search(r"text|number|true|list|mapping|keys|`|of", kind) for _, kind, _, _ in keys)


# What a number counts, or what it is where it counts nothing.
COUNTED = """
    bytes checkpoints classes columns copies devices documents gib hour ids layers minutes often passes positions
    processors ranks replicas resamples rows sequences steps times tokens windows
"""
PURE = "exponent factor mass norm rate salt scaled seed share temperature temperatures weight"


def numbers(section: type[BaseModel], place: str = "") -> Iterator[tuple[str, str]]:
    """Each key of a recipe that takes a number, with its name and description."""
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            yield from numbers(inner, f"{place}{name}.")
        elif re.search(r"\b(?:int|float)\b", str(field.annotation)):
            yield place + name, f"{name} {field.description}"


def test_each_number_of_a_recipe_says_what_it_counts() -> None:
    known = {*COUNTED.split(), *PURE.split()}
    found = dict(numbers(Recipe))
    assert len(found) > 60
    assert [key for key, said in found.items() if not known & set(re.findall(r"[a-z]+", said.lower()))] == []


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
