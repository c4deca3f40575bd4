"""plain-1: ids, odds and log-probabilities as they were, logits as float16 has them; the same bytes each time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_kd.cache.codecs import plain
from distributed_kd.cache.soft_targets import SoftTargets
from tests.cache.test_codec_compact import hard_targets


def round_trip(targets: SoftTargets, lengths: list[int]) -> SoftTargets:
    tokens = np.zeros(len(targets), np.int32)
    encoded = plain.encode(targets, np.array(lengths), tokens)
    again = plain.encode(targets, np.array(lengths), tokens)
    assert all(encoded.columns[name].equals(again.columns[name]) for name in encoded.columns)
    return plain.decode(encoded.columns, np.array(lengths), tokens, targets.temperatures)


@given(hard_targets(), st.booleans())
def test_any_targets_come_back(case: Any, with_log_p: bool) -> None:
    targets, _, lengths = case
    if with_log_p:
        log_p = np.stack([targets.logits - 1.0, targets.logits / 2.0], axis=1).astype(np.float32)
        odds = np.repeat(targets.tail_odds, 2, axis=1)
        targets = SoftTargets(targets.ids, targets.logits, odds, (1.0, 2.0), log_p)
    found = round_trip(targets, lengths)
    np.testing.assert_array_equal(found.ids, targets.ids)
    np.testing.assert_array_equal(found.tail_odds, targets.tail_odds)
    np.testing.assert_array_equal(found.logits, targets.logits.astype(np.float16).astype(np.float32))
    assert (found.log_p is None) == (not with_log_p)
    if with_log_p:
        np.testing.assert_array_equal(found.log_p, targets.log_p)


@pytest.mark.parametrize(("vocabulary", "k"), [(1, 1), (2, 2), (5000, 5000), (1 << 31, 3)])
def test_any_k_up_to_the_whole_vocabulary(vocabulary: int, k: int) -> None:
    ids = np.stack([np.arange(k), vocabulary - 1 - np.arange(k)]).astype(np.int32)
    logits = np.stack([np.zeros(k), -np.arange(k) / 4.0]).astype(np.float32)
    targets = SoftTargets(ids, logits, np.full((2, 1), -np.inf, np.float32), (1.0,))
    np.testing.assert_array_equal(round_trip(targets, [1, 0, 1]).ids, ids)


def test_log_probabilities_of_another_width_are_refused() -> None:
    targets = SoftTargets(
        np.zeros((2, 3), np.int32), np.zeros((2, 3), np.float32), np.zeros((2, 2), np.float32), (1.0, 2.0),
        np.zeros((2, 2, 3), np.float32),
    )  # fmt: skip
    columns = plain.encode(targets, np.array([2]), np.zeros(2, np.int32)).columns
    for temperatures in ((1.0,), (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match="other odds"):
            plain.decode(columns, np.array([2]), np.zeros(2, np.int32), temperatures)
    narrow = SoftTargets(targets.ids[:, :2], targets.logits[:, :2], targets.tail_odds, (1.0, 2.0))
    mixed = plain.encode(narrow, np.array([2]), np.zeros(2, np.int32)).columns | {"log_p": columns["log_p"]}
    with pytest.raises(ValueError, match="6 log-probabilities for 2 ids at 2 temperatures"):
        plain.decode(mixed, np.array([2]), np.zeros(2, np.int32), (1.0, 2.0))
