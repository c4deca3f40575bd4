"""Sequences for which the teacher gives NaN or infinity: named, set aside, and never written."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed_kd import CacheDataset, Collator, distillation_loss
from distributed_kd.cache import open as open_cache
from distributed_kd.cache.inspect import inspect
from distributed_kd.cache.verify import verify
from distributed_kd.corpus.prepare import prepare
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.errors import WorkError
from distributed_kd.recipe import Capture, Targets, Teacher, parse
from distributed_kd.store.filesystem import Store
from distributed_kd.store.manifest import Run
from distributed_kd.teacher.capture import capture
from distributed_kd.teacher.forward import TeacherForward
from distributed_kd.teacher.repair import repair
from tests import toys
from tests.commands import dkd, said, write_recipe
from tests.disturbed import shards_of
from tests.teacher.test_targets import sequences_of

POISON = 61


def save_poisoned_teacher(folder: Path, value: float, where: str) -> Path:
    """A teacher that gives numbers that are not finite after one id, and after what follows it in a sequence."""
    from transformers import AutoModelForCausalLM

    toys.save_model(folder, layers=2, seed=5, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        if where == "embedding":
            model.model.embed_tokens.weight[POISON] = value
        else:  # one logit alone, of every position
            model.lm_head.weight[POISON] = value
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["embedding", "head"])
@pytest.mark.parametrize(
    "targets",
    [
        Targets(k=5, temperatures=[1.0, 2.0]),
        Targets(method="top_p", k=5, p=0.9),
        Targets(method="sample", draws=4),
        Targets(method="sample", draws=4, temperatures=[1.0, 2.0]),
        Targets(method="full"),
    ],
    ids=["top_k", "top_p", "sample", "weighted", "full"],
)
def test_the_sequence_is_named_whatever_is_kept(tmp_path: Path, value: float, where: str, targets: Targets) -> None:
    teacher = TeacherForward(
        Teacher(model=str(save_poisoned_teacher(tmp_path, value, where)), dtype="float32"), targets, Capture()
    )
    good, bad = sequences_of([3, 4, 5, 6], [3, 4, POISON, 6])
    with pytest.raises(WorkError, match=f"not finite for sequence {bad.sequence_id if where == 'embedding' else ''}"):
        teacher([good, bad])
    if where == "embedding":
        assert all(np.isfinite(own.logits[own.ids >= 0]).all() for own in teacher([good]))


@pytest.mark.slow
def test_its_shard_is_set_aside_by_name_and_the_others_are_written(
    ray_cluster: Any, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    toy_recipe["teachers"][0]["model"] = str(save_poisoned_teacher(tmp_path / "teacher", math.nan, "embedding"))
    toy_recipe["corpus"] |= {"packing": "none", "shard_sequences": 4}
    recipe = parse(toy_recipe)
    prepare(recipe)
    sequences = Sequences.of(recipe)
    shards = [entry.shard for entry in sequences.shards("train")]
    poisoned = {
        shard: [own.sequence_id for own in sequences.read(shard) if POISON in own.input_ids[own.loss_mask]]
        for shard in shards
    }
    bad = sorted(shard for shard in shards if poisoned[shard])
    assert 0 < len(bad) < len(shards)
    with pytest.raises(WorkError, match=rf"^{len(bad)} of {len(shards)} shards were set aside") as raised:
        capture(recipe)
    for shard in bad[:5]:
        assert f"shard {shard}: the teacher gave a number that is not finite for sequence {poisoned[shard][0]}" in str(
            raised.value
        )
    cache = Path(recipe.workdir) / "cache"
    written = {int(path.stem) for path in (cache / "shards").glob("*.arrow")}
    assert written == set(shards) - set(bad)
    first = Run.read(Store(str(cache)))
    path = write_recipe(tmp_path, toy_recipe)
    done = dkd("cache", path)
    both = Run.read(Store(str(cache)))
    assert first is not None and both is not None, "how long it took is told of a command that failed as well"
    assert both.device_seconds > first.device_seconds > 0.0 and both.seconds > first.seconds
    assert done.returncode == 1
    assert "shards were set aside, the others are written" in said(done)
    assert f"shard {bad[0]}: the teacher gave a number that is not finite for sequence" in said(done)
    assert inspect(str(cache))["missing_shards"] == bad

    leave_out_what_the_lines_name(toy_recipe, cache, said(done), poisoned)
    train_from(cache, toy_recipe["student"]["model"])


def train_from(cache: Path, student: str) -> None:
    """Rows that are left out add nothing to the loss of the others, and a batch of them alone has none."""
    from transformers import AutoModelForCausalLM

    model, data = AutoModelForCausalLM.from_pretrained(student), CacheDataset(str(cache))
    left_out = set(data.cache.manifest.left_out or ())
    rows = [data[place] for place in range(16)]
    are_out = [row.sequence.sequence_id in left_out for row in rows]
    assert any(are_out) and not all(are_out)
    collate = Collator(temperature=2.0)
    others = [row for row, is_out in zip(rows, are_out, strict=True) if not is_out]
    only = [row for row, is_out in zip(rows, are_out, strict=True) if is_out]
    whole, without, nothing = (distillation_loss(model, collate(own), alpha=0.5).total for own in (rows, others, only))
    assert float(whole.detach()) == pytest.approx(float(without.detach()), rel=1e-5)
    assert float(nothing.detach()) == 0.0
    whole.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def leave_out_what_the_lines_name(data: dict[str, Any], cache: Path, line: str, poisoned: dict[int, list[int]]) -> None:
    """By the key that a line names, one capture after the other until nothing is set aside; and a repair."""
    written = shards_of(cache)
    left_out: set[int] = set()
    while "were set aside" in line:
        for ids in re.findall(r"capture\.leave_out=\[([\d, ]+)\]", line):
            left_out |= set(map(int, ids.split(",")))
        recipe = parse(data | {"capture": data["capture"] | {"leave_out": sorted(left_out)}})
        try:
            line = str(capture(recipe))
        except WorkError as error:
            line = str(error)
    wanted = sorted(one for own in poisoned.values() for one in own)
    assert sorted(left_out) == wanted == inspect(str(cache))["left_out"]
    whole = shards_of(cache)
    assert written.items() < whole.items(), "finished shards stay as they are"
    assert verify(str(cache)).all_good
    opened = open_cache(str(cache))
    for row in (opened[place] for place in range(len(opened))):
        is_left_out = row.sequence.sequence_id in wanted
        assert (row.sequence.positions == 0) == is_left_out == (len(row.targets) == 0)
        assert len(row.sequence.input_ids) > 0
    [shard, *_] = (shard for shard in poisoned if poisoned[shard])
    (cache / "shards" / f"{shard:08d}.arrow").unlink()
    assert repair(parse(data)).shards == [shard], "the cache itself says what it has left out"
    assert shards_of(cache) == whole
