"""The student as it is trained: what of a batch reaches its weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from distributed_kd.models.feature_classifier import FeatureClassifier
from distributed_kd.models.feature_config import FeatureClassifierConfig
from distributed_kd.recipe import Objective
from distributed_kd.student.model import DistillationModel
from distributed_kd.student.stream import to_micro_batch
from tests.cache.caches import V, make_rows


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_with_other_labels_alpha_one_gives_the_same_weights_bit_for_bit(alpha: float) -> None:
    given, scrambled = weights(alpha, seed=1), weights(alpha, seed=2)
    assert torch.equal(given, scrambled) == (alpha == 1.0)


def weights(alpha: float, seed: int) -> torch.Tensor:
    """Of a classifier after five steps on the same rows and soft targets; the seed draws the labels alone."""
    torch.manual_seed(0)
    network = FeatureClassifier(FeatureClassifierConfig(features=3, num_labels=V, hidden_sizes=[8]))
    student = DistillationModel(network, Objective(alpha=alpha, temperature=2.0))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    features, labels = np.random.default_rng(0), np.random.default_rng(seed)
    for step in range(5):
        rows = []
        for row in make_rows(step, 3):
            own = replace(
                row.sequence,
                features=features.normal(size=(len(row.sequence.input_ids), 3)).astype(np.float32),
                given_labels=labels.integers(0, V, row.sequence.positions).astype(np.int32),
            )
            rows.append(replace(row, sequence=own))
        optimizer.zero_grad()
        student(to_micro_batch(rows, [0, 0, 0], 2.0), 1.0).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
