"""Figures against the positions themselves: agreement and KL by the teacher's entropy, and intervals over documents."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from distributed_kd.evaluate.measures import (
    ENTROPY_BINS,
    by_teacher_entropy,
    differences,
    retention,
    transferred_share,
)
from distributed_kd.evaluate.scores import Scores


def scores_of(positions: int) -> Scores:
    random = np.random.default_rng(positions)
    agrees = (random.random(positions) < 0.4).astype(np.float64)
    filler = np.zeros(positions)
    return Scores(filler, random.random(positions), agrees, filler > 1, filler, 1.0, 1)


def test_each_position_is_in_the_one_bin_of_its_entropy() -> None:
    own, entropy = scores_of(1003), np.random.default_rng(0).gamma(2.0, size=1003)
    rows = by_teacher_entropy({"student": own}, entropy)
    assert len(rows) == ENTROPY_BINS and sum(row["positions"] for row in rows) == 1003
    assert {row["positions"] for row in rows} <= {100, 101}
    assert all(one["entropy"][1] < other["entropy"][0] for one, other in pairwise(rows))
    for row in rows:
        here = (row["entropy"][0] <= entropy) & (entropy <= row["entropy"][1])
        assert here.sum() == row["positions"] and row["mean"] == pytest.approx(entropy[here].mean())
        found = row["models"]["student"]
        assert found["agreement"] == pytest.approx(own.agrees[here].mean())
        assert found["kl_from_teacher"] == pytest.approx(own.kl_from_teacher[here].mean())


@pytest.mark.parametrize(("entropy", "sizes"), [([0.0] * 9, [9]), ([0.0] * 9 + [1.0], [9, 1]), ([2.0], [1])])
def test_bins_of_one_entropy_are_one(entropy: list[float], sizes: list[int]) -> None:
    rows = by_teacher_entropy({"student": scores_of(len(entropy))}, np.array(entropy))
    assert [row["positions"] for row in rows] == sizes


def scores_that_are_right(correct: np.ndarray) -> Scores:
    filler = np.zeros(len(correct))
    return Scores(filler, filler, filler, correct.astype(bool), filler, 1.0, 1)


def test_retention_is_of_resampled_documents_that_both_models_see() -> None:
    documents, right = np.arange(4000) // 100, np.arange(4000) % 10
    teacher = scores_that_are_right(right < 5)
    value, interval = retention(scores_that_are_right(right < 4), teacher, documents, 500) or (0.0, [])
    assert value == pytest.approx(0.8) and interval == pytest.approx([0.8, 0.8])  # every document tells the same
    better_in_some = scores_that_are_right((right < 4) | (documents < 10))
    value, (low, high) = retention(better_in_some, teacher, documents, 2000) or (0.0, [0.0, 0.0])
    # 10 of 40 documents are wholly right, which are 10 +- sqrt(40 * 0.25 * 0.75) of a resample.
    assert value == pytest.approx(2 * (0.25 + 0.75 * 0.4))
    spread = 1.2 * np.sqrt(0.25 * 0.75 / 40)
    assert [low, high] == pytest.approx([value - 1.96 * spread, value + 1.96 * spread], abs=0.03)


def test_no_retention_of_a_teacher_that_is_right_nowhere() -> None:
    nowhere, somewhere = np.zeros(6), np.array([1, 0, 0, 0, 0, 0])
    documents = np.arange(6) // 3
    assert retention(scores_that_are_right(somewhere), scores_that_are_right(nowhere), documents, 50) is None
    # In a resample of the second document alone it is right nowhere.
    assert retention(scores_that_are_right(somewhere), scores_that_are_right(somewhere), documents, 50) == (
        1.0,
        [1.0, 1.0],
    )


def test_a_difference_is_of_resampled_documents_and_of_resampled_pairs() -> None:
    documents, right = np.arange(4000) // 100, np.arange(4000) % 10
    baseline, better = scores_that_are_right(right < 4), scores_that_are_right((right < 4) | (documents < 10))
    found = differences([better], [baseline], documents, 2000)["accuracy"]
    spread = 0.6 * np.sqrt(0.25 * 0.75 / 40)  # 10 of 40 documents are wholly right
    assert found["difference"] == pytest.approx(0.15)
    assert found["interval"] == pytest.approx([0.15 - 1.96 * spread, 0.15 + 1.96 * spread], abs=0.012)
    found = differences([better, baseline], [baseline, baseline], documents, 4000)["accuracy"]
    assert found["difference"] == pytest.approx(0.075)
    # A quarter of the resamples draws the pair without a difference twice, a quarter the other one.
    assert found["interval"] == pytest.approx([0.0, 0.15 + 1.28 * spread], abs=0.012)


def test_the_transferred_share_is_of_resampled_documents() -> None:
    documents, right = np.arange(4000) // 100, np.arange(4000) % 10
    baseline, ensemble = scores_that_are_right(right < 4), scores_that_are_right(right < 6)
    halfway = scores_that_are_right(right < 5)
    assert transferred_share(halfway, baseline, ensemble, documents, 500) == (
        pytest.approx(0.5),
        pytest.approx([0.5, 0.5]),  # every document tells the same
    )
    in_half = scores_that_are_right(np.where(documents < 20, right < 6, right < 4))
    value, (low, high) = transferred_share(in_half, baseline, ensemble, documents, 2000) or (0.0, [0.0, 0.0])
    spread = np.sqrt(0.25 / 40)
    assert [low, value, high] == pytest.approx([0.5 - 1.96 * spread, 0.5, 0.5 + 1.96 * spread], abs=0.03)
    assert transferred_share(halfway, ensemble, baseline, documents, 500) is None  # an ensemble without a gain
