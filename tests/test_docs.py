"""The page of a recipe's keys is what its generator writes, and says something of each."""

from __future__ import annotations

import re
import runpy

from tests.commands import ROOT


def test_the_page_of_keys_is_that_of_the_models() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "recipe_keys.py"))["page"]()
    assert (ROOT / "docs" / "recipe-keys.md").read_text() == made, "run `python docs/recipe_keys.py`"
    keys = re.findall(r"^\| `(\w+)` \| (.+) \| (.*) \| (.*) \|$", made, flags=re.MULTILINE)
    assert len(keys) >= 100 and {"sequence_length", "head_chunk", "spike_factor"} <= {key for key, *_ in keys}
    assert [key for key, _, _, said in keys if not said] == []
    assert all(re.search(r"text|number|true|list|mapping|keys|`|of", kind) for _, kind, _, _ in keys)
