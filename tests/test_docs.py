"""The page of a recipe's keys is what its generator writes; the site is built, and no link of it leads nowhere."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT


def test_the_page_of_keys_is_that_of_the_models() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "recipe_keys.py"))["page"]()
    assert (ROOT / "docs" / "recipe-keys.md").read_text() == made, "run `python docs/recipe_keys.py`"
    keys = re.findall(r"^\| `(\w+)` \| (.+) \| (.*) \| (.*) \|$", made, flags=re.MULTILINE)
    assert len(keys) >= 100 and {"sequence_length", "head_chunk", "spike_factor"} <= {key for key, *_ in keys}
    assert [key for key, _, _, said in keys if not said] == []
    assert all(re.search(r"text|number|true|list|mapping|keys|`|of", kind) for _, kind, _, _ in keys)


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
