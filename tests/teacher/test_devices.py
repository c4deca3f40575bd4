"""A teacher divided over two devices: the same targets as one device gives, and it lives and dies as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from distributed_kd import cache as caches
from distributed_kd.corpus.prepare import prepare
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Recipe, parse
from distributed_kd.teacher import capture as stage
from tests import toys
from tests.disturbed import receipts_of, said_by_capture, until

pytestmark = pytest.mark.slow


def divided(recipe: dict[str, Any], name: str, devices: int) -> Recipe:
    teachers = [recipe["teachers"][0] | {"devices_per_replica": devices}]
    return parse(recipe | {"workdir": f"{recipe['workdir']}-{name}", "teachers": teachers})


def peers() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [])[-2:] == ["-m", "distributed_kd.teacher.peers"]
    ]


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, marks=pytest.mark.long), {"tie_word_embeddings": False, "vocab_size": 73}],
    ids=["tied", "odd"],
)
def test_two_devices_give_the_targets_of_one(
    ray_cluster: Any, toy_recipe: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    toy_recipe["teachers"][0]["model"] = str(toys.save_model(tmp_path / "teacher", layers=3, seed=9, **changes))
    rows = []
    for devices in (1, 2):
        recipe = divided(toy_recipe, str(devices), devices)
        prepare(recipe)
        stage.capture(recipe)
        cache = caches.open(f"{recipe.workdir}/cache")
        rows.append([cache[place] for place in range(len(cache))])
    assert len(rows[0]) > 50
    until(lambda: not peers(), "the end of the peers")
    for one, two in zip(*rows, strict=True):
        assert one.sequence.sequence_id == two.sequence.sequence_id
        # Equal but for ids whose logits are equal to the tolerance, and may stand in another order.
        assert (one.targets.ids == two.targets.ids).mean() > 0.95
        np.testing.assert_allclose(two.targets.logits, one.targets.logits, rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(two.targets.tail_odds, one.targets.tail_odds, rtol=1e-3, atol=2e-3)


def test_a_replica_whose_peer_is_killed_is_replaced(
    ray_cluster: Any, toy_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_recipe["corpus"]["shard_sequences"] = 2
    recipe = divided(toy_recipe, "killed", 2)
    prepare(recipe)
    cache = Path(recipe.workdir) / "cache"

    def kill() -> None:
        until(lambda: receipts_of(cache) > 2, "receipts")
        for process in peers():
            process.kill()

    lines = said_by_capture(recipe, kill, monkeypatch)
    assert [line for line in lines if "replica 0 was lost" in line], lines


def test_a_teacher_without_a_plan_is_refused(ray_cluster: Any, toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    toys.save_tokenizer(tmp_path / "gpt2")
    toy_recipe["teachers"][0]["model"] = str(tmp_path / "gpt2")
    recipe = divided(toy_recipe, "gpt2", 2)
    prepare(recipe)
    with pytest.raises(RequestError, match="but `GPT2LMHeadModel` has no `tp_plan`"):
        stage.capture(recipe)


def test_heads_that_do_not_divide_are_refused(toy_teacher: Path) -> None:
    """Before any peer is waited for."""
    import torch

    from distributed_kd.models.load import load_model

    with pytest.raises(RequestError, match="its 2 key-value heads cannot be divided over 3 devices"):
        load_model(toy_teacher, torch.float32, torch.device("cpu"), devices=3)
