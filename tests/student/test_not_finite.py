"""A loss that is not finite stops training: the sequences are named, all ranks end, and the checkpoint stays good."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_kd import cache as caches
from distributed_kd.student.order import GlobalOrder
from tests import toys
from tests.commands import dkd, said, write_recipe

POISON = 61
RANKS, BATCH = 2, 4


def save_poisoned_student(folder: Path) -> Path:
    """One whose loss is NaN for sequences with one id, and for no others."""
    from transformers import AutoModelForCausalLM

    toys.save_model(folder, layers=2, seed=5, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = torch.nan
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [pytest.param(0.5, marks=pytest.mark.long), 1.0])
def test_the_sequences_are_named_and_every_rank_ends(
    captured_recipe: dict[str, Any], tmp_path: Path, alpha: float
) -> None:
    captured_recipe["student"]["model"] = str(save_poisoned_student(tmp_path / "student"))
    captured_recipe["objective"]["alpha"] = alpha
    captured_recipe["trainer"] |= {
        "processes": RANKS, "global_batch": BATCH, "micro_batch": 1, "steps": 60, "checkpoint_every": 1,
    }  # fmt: skip
    recipe = write_recipe(tmp_path, captured_recipe)
    done = dkd("train", recipe)
    assert done.returncode == 1, done.stderr
    line = said(done)

    workdir = Path(captured_recipe["workdir"])
    cache = caches.open(str(workdir / "cache"))
    order = GlobalOrder(cache.manifest.fingerprint, 0, cache.entries.rows, BATCH)
    is_bad = [POISON in row.sequence.input_ids for row in (cache[place] for place in range(len(cache)))]
    step = next(step for step in range(60) if any(is_bad[place] for place in order.batch(step)))
    bad = [int(place) for place in order.batch(step) if is_bad[place]]
    assert f"the loss is nan at step {step}, from sequences " in line
    named = [(int(number), int(shard)) for number, shard in re.findall(r"(\d+) \(shard (\d+)\)", line)]
    assert named == [(cache[place].sequence.sequence_id, int(cache.entries.places_of(place))) for place in bad]
    checkpoints = sorted((workdir / "student" / "checkpoints").glob("step-*.json"))
    assert [path.stem for path in checkpoints] == [f"step-{one:08d}" for one in range(max(1, step - 1), step + 1)]
