"""A merge is held to the objective by its own manifest: the recipe's targets are not what it was made of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from distributed_kd import cache
from distributed_kd.cache.merge import merge
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Objective, parse
from distributed_kd.student.fits import _refuse_other_merge
from tests.cache.test_merge import write_member

BIASED: list[dict[str, Any]] = [
    *({"divergence": name} for name in get_args(Objective.model_fields["divergence"].annotation)),
    {"confidence_exponent": 1.0}, {"entropy_share": 0.5},
]  # fmt: skip
BIASED.remove({"divergence": "forward_kl"})


@pytest.mark.parametrize("objective", BIASED, ids=str)
def test_a_merge_of_drawn_targets_refuses_what_they_bias(
    toy_recipe: dict[str, Any], tmp_path: Path, objective: dict[str, Any]
) -> None:
    manifest = SimpleNamespace(fingerprint="of all", tokenizer=SimpleNamespace(sha256="0" * 64))
    sequences: Any = SimpleNamespace(manifest=manifest)
    said = {name: parse(toy_recipe | {"objective": {"temperature": 2.0} | keys}) for name, keys in
            (("biased", objective), ("right", {}))}  # fmt: skip
    for method in ("sample", "top_k"):
        members = [write_member(tmp_path / method, number, method=method) for number in (1, 2)]
        merge(members, str(tmp_path / method / "out"))
        merged = cache.open(str(tmp_path / method / "out"))
        _refuse_other_merge(said["right"], merged, sequences)
        if method == "top_k":
            _refuse_other_merge(said["biased"], merged, sequences)
            continue
        with pytest.raises(RequestError, match=r"out is a merge of drawn targets: objective\.(divergence|confidence)"):
            _refuse_other_merge(said["biased"], merged, sequences)
