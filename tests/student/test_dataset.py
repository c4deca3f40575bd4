"""A cache as a torch dataset: its rows, each shard read once while it is held, and batches of what a model takes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distributed_kd import CacheDataset, Collator, distillation_loss
from distributed_kd.cache.reader import LogitCache
from distributed_kd.errors import RequestError
from distributed_kd.models import parts
from distributed_kd.models.feature_classifier import FeatureClassifier
from distributed_kd.models.feature_config import FeatureClassifierConfig
from distributed_kd.store.filesystem import Store
from tests.cache.caches import V, make_cache, make_rows


def test_rows_are_the_caches_and_a_shard_is_read_once_while_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_cache(Store(str(tmp_path)), "plain-1", shards=3, rows=4)
    read: list[int] = []
    table = LogitCache.table
    monkeypatch.setattr(LogitCache, "table", lambda self, place: read.append(place) or table(self, place))
    data = pickle.loads(pickle.dumps(CacheDataset(str(tmp_path), shards_held=2)))  # as a loader's worker gets it
    assert len(data) == 12
    for index in (0, 5, 1, 6, 9, 2):
        np.testing.assert_array_equal(data[index].sequence.input_ids, rows[index].sequence.input_ids)
        np.testing.assert_array_equal(data[index].targets.ids, rows[index].targets.ids)
    assert read == [0, 1, 2, 0]
    for index in (-1, 12):
        with pytest.raises(IndexError, match=f"sequence {index} of 12"):
            data[index]
    with pytest.raises(RequestError, match=r"temperature 3 is not in the cache; it holds \[1\.0, 2\.0\]"):
        Collator(temperature=3.0)([data[1]])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_positions_that_are_no_tokens(alpha: float) -> None:
    """The loss is that of the classifier's own logits, in whatever batch."""
    torch.manual_seed(0)
    model = FeatureClassifier(FeatureClassifierConfig(features=3, num_labels=V, context=[-1, 0], hidden_sizes=[8]))
    random = np.random.default_rng(0)
    rows = []
    for row in make_rows(1, 3):
        own = row.sequence
        features = random.normal(size=(len(own.input_ids), 3)).astype(np.float32)
        labels = random.integers(0, V, own.positions).astype(np.int32)
        rows.append(replace(row, sequence=replace(own, features=features, given_labels=labels)))
    together = distillation_loss(model, Collator(1.0)(rows), alpha=alpha).total
    alone = [distillation_loss(model, Collator(1.0)([row]), alpha=alpha).total for row in rows]
    torch.testing.assert_close(together, torch.stack(alone).sum())

    batch = Collator(1.0)(rows)
    scored = batch["labels"] != -100
    assert torch.equal(scored, batch["loss_mask"])
    logits = model(batch["features"]).logits[scored]
    if alpha == 0.0:
        expected = torch.nn.functional.cross_entropy(logits, batch["target_labels"], reduction="sum")
        torch.testing.assert_close(together, expected)
    assert parts.hidden_states(model, *[batch["input_ids"]] * 3, batch["features"]).shape[-1] == 8
