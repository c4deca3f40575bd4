"""Agreement and KL by the teacher's entropy, against the positions themselves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from distributed_kd.evaluate.measures import ENTROPY_BINS, by_teacher_entropy
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
