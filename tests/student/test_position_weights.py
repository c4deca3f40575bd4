"""Positions chosen and weighed by the teacher's own distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from distributed_kd.corpus.sequences import NO_LABEL, Sequence
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Objective, Recipe, parse
from distributed_kd.student import artifact
from distributed_kd.student.position_weights import PositionWeights, entropies
from distributed_kd.student.stream import to_micro_batch
from tests.student.split_worker import batch_rows
from tests.test_recipe import MINIMAL


def of(**said: float) -> PositionWeights:
    found = PositionWeights.of(Objective(**said))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_entropy_is_that_of_the_kept_ids_and_the_tail() -> None:
    p = np.array([[0.5, 0.25, 0.125], [1.0, 0.0, 0.0], [0.2, 0.2, 0.2]])
    tail = np.array([0.125, 0.0, 0.4])
    with np.errstate(divide="ignore"):
        found = entropies(np.log(p), np.log(tail))
    np.testing.assert_allclose(found / np.log(2.0), [1.75, 0.0, -3 * 0.2 * np.log2(0.2) - 0.4 * np.log2(0.4)])


def test_the_most_uncertain_positions_of_each_sequence_are_chosen() -> None:
    """Not of the batch: another split of it would choose others. A tie goes to the earlier position."""
    p = np.array([0.9, 0.5, 0.7, 0.5, 0.99, 0.6, 0.98])
    chosen = of(entropy_share=0.5).chosen(np.log(p)[:, None], np.log(1 - p), [4, 3], np.zeros(7, int))
    assert chosen.tolist() == [False, True, False, True, False, True, True]
    assert of(entropy_share=0.25).chosen(np.log(p)[:, None], np.log(1 - p), [4, 3], np.zeros(7, int)).tolist() == [
        False, True, False, False, False, True, False,
    ]  # fmt: skip


def test_a_position_counts_by_how_unsure_the_teacher_is() -> None:
    weights = of(confidence_exponent=2.0).weights(np.log(np.array([[0.9, 0.05], [0.2, 0.4], [0.0, 1.0]]) + 1e-30))
    assert weights is not None
    np.testing.assert_allclose(weights, [0.01, 0.36, 0.0], atol=1e-7)
    assert of(entropy_share=0.5).weights(np.zeros((2, 1))) is None


def test_a_micro_batch_has_only_what_is_chosen() -> None:
    rows = batch_rows()
    whole = to_micro_batch(rows, list(range(8)), 2.0)
    some = to_micro_batch(rows, list(range(8)), 2.0, of(entropy_share=0.5, confidence_exponent=1.0))
    counts = some.loss_mask.sum(dim=1).tolist()
    assert counts == [-(-row.sequence.positions // 2) for row in rows]
    assert not (some.loss_mask & ~whole.loss_mask).any()
    assert some.targets.weight is not None
    assert len(some.targets) == len(some.targets.weight) == sum(counts)
    chosen = some.loss_mask[whole.loss_mask]
    assert torch.equal(some.targets.ids, whole.targets.ids[chosen])
    assert torch.equal(some.targets.labels, whole.targets.labels[chosen])
    torch.testing.assert_close(some.targets.weight, 1.0 - whole.targets.log_p[chosen].exp().amax(dim=1))
    assert some.targets.total_weight == pytest.approx(some.targets.weight.sum().item())


def test_labels_alone_teach_nothing_where_there_is_none() -> None:
    """At alpha = 0; above it the teacher has something to say there. Rows with labels alone take the shorter way."""
    weighting = PositionWeights.of(Objective(alpha=0.0), unlabelled=3)
    assert weighting is not None
    labels = np.array([4, -100, 0, -100])
    assert weighting.chosen(np.zeros((4, 0)), np.zeros(4), [4], labels).tolist() == [True, False, True, False]
    assert PositionWeights.of(Objective(alpha=0.5), unlabelled=3) is None
    assert PositionWeights.of(Objective(alpha=0.0), unlabelled=0) is None


def test_a_row_that_teaches_nothing_is_not_computed() -> None:
    """Of eight rows two have labels; the batch is as wide as the longer of them. One row stays where none has any."""
    weighting = PositionWeights.of(Objective(alpha=0.0), unlabelled=3)
    rows = batch_rows()
    labelled = [replace(row, sequence=_labelled(row.sequence, at in (2, 5))) for at, row in enumerate(rows)]
    some = to_micro_batch(labelled, list(range(10, 18)), 2.0, weighting)
    alone = to_micro_batch([labelled[2], labelled[5]], [12, 15], 2.0)
    assert (some.sequence_ids, some.shards) == (alone.sequence_ids, (12, 15))
    for name in ("input_ids", "position_ids", "present", "loss_mask"):
        assert torch.equal(getattr(some, name), getattr(alone, name))
    assert torch.equal(some.targets.labels, alone.targets.labels) and torch.equal(some.targets.ids, alone.targets.ids)
    nothing = to_micro_batch([labelled[0], labelled[1]], [10, 11], 2.0, weighting)
    assert len(nothing.input_ids) == 1 and not nothing.loss_mask.any() and len(nothing.targets) == 0


def _labelled(sequence: Sequence, is_labelled: bool) -> Sequence:
    return replace(sequence, given_labels=np.full(sequence.positions, 3 if is_labelled else NO_LABEL, np.int32))


def test_drawn_targets_are_refused() -> None:
    drawn = MINIMAL | {"targets": {"method": "sample", "draws": 20}, "objective": {"entropy_share": 0.5}}
    with pytest.raises(RequestError, match="drawn targets"):
        parse(drawn)


def test_the_baseline_takes_every_position_and_other_students_keep_their_fingerprint() -> None:
    def made_from(recipe: Recipe, arm: str) -> dict[str, Any]:
        return artifact.made_from_of(artifact.arm_recipe(recipe, arm), "0" * 64, None)["objective"]

    plain = parse(MINIMAL | {"baseline": {}})
    weighed = parse(MINIMAL | {"baseline": {}, "objective": {"entropy_share": 0.5}})
    assert made_from(plain, "baseline") == made_from(weighed, "baseline")
    assert "entropy_share" not in made_from(plain, "student")
    assert made_from(weighed, "student")["entropy_share"] == 0.5


def test_a_baseline_may_take_more_sequences_a_step() -> None:
    recipe = parse(MINIMAL | {"baseline": {"global_batch": 80}})
    batches = [artifact.arm_recipe(recipe, arm).trainer.global_batch for arm in artifact.ARMS]
    assert batches == [recipe.trainer.global_batch, 80]
    with pytest.raises(RequestError, match=r"baseline\.global_batch 5 is not a multiple of trainer\.micro_batch 4"):
        parse(MINIMAL | {"baseline": {"global_batch": 5}, "trainer": {"epochs": 1, "micro_batch": 4}})
