"""dense-1: a byte an id, at a small KL at every temperature; what is no such column is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from distributed_kd.cache.codecs import dense
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.teacher.targets import full, top_k

TEMPERATURES = (1.0, 2.0, 5.0, 10.0)


def targets_of(seed: int, positions: int, vocabulary: int, spread: float) -> SoftTargets:
    logits = torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread
    return full(logits, TEMPERATURES).to_host()


def round_trip(targets: SoftTargets, lengths: list[int]) -> SoftTargets:
    encoded = dense.encode(targets, np.array(lengths), np.zeros(len(targets), np.int32))
    return dense.decode(encoded.columns, np.array(lengths), np.zeros(len(targets), np.int32), targets.temperatures)


def kl(exact: SoftTargets, found: SoftTargets, temperature: float) -> np.ndarray:
    p, q = (own.log_probabilities(temperature)[0].astype(np.float64) for own in (exact, found))
    return (np.exp(p) * (p - q)).sum(axis=1)


@given(st.integers(0, 2**31), st.integers(0, 9), st.integers(1, 200), st.floats(0.0, 30.0), st.integers(0, 9))
@example(1, 1, 2, 1e-5, 0)
def test_every_id_comes_back_in_order_and_decoding_twice_changes_nothing(
    seed: int, positions: int, vocabulary: int, spread: float, cut: int
) -> None:
    targets = targets_of(seed, positions, vocabulary, spread)
    lengths = [min(cut, positions), positions - min(cut, positions)]
    found = round_trip(targets, lengths)
    assert (found.ids == np.arange(vocabulary)).all()
    assert found.logits.shape == targets.logits.shape
    assert (found.logits.max(axis=1, initial=-np.inf) == 0).all()
    ranges = -targets.logits.min(axis=1, initial=0.0)[:, None]
    # Half a step: the distance between neighbouring levels at this depth, a little more for float16's range.
    step = 2 * np.sqrt(ranges * np.abs(targets.logits)) / 255 + ranges / 255**2
    bound = 0.51 * step + 2e-3 * ranges / 255 + np.where(ranges < 6.2e-5, ranges, 1e-6)
    assert (np.abs(found.logits - targets.logits) <= bound).all()
    np.testing.assert_array_equal(round_trip(found, lengths).logits, found.logits)


@pytest.mark.parametrize(("vocabulary", "spread"), [(10, 6.0), (115, 4.0), (1000, 3.0)])
def test_the_kl_it_adds_is_small_at_every_temperature(vocabulary: int, spread: float) -> None:
    targets = targets_of(0, 400, vocabulary, spread)
    found = round_trip(targets, [400])
    for temperature in TEMPERATURES:
        assert kl(targets, found, temperature).mean() < 3e-4


def test_targets_that_do_not_keep_every_id_are_refused() -> None:
    some = top_k(torch.randn(3, 9), 4, (1.0,)).to_host()
    weighted = SoftTargets(
        np.broadcast_to(np.arange(4, dtype=np.int32), (3, 4)), np.zeros((3, 4), np.float32),
        np.full((3, 1), -np.inf, np.float32), (1.0,), np.zeros((3, 1, 4), np.float32),
    )  # fmt: skip
    for targets, said in ((some, "all ids"), (weighted, "plain-1 keeps them")):
        with pytest.raises(ValueError, match=said):
            dense.encode(targets, np.array([3]), np.zeros(3, np.int32))


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.pop("levels"),
        lambda c: c.pop("ranges"),
        lambda c: c.update(levels=c["ranges"]),
        lambda c: c.update(ranges=c["levels"]),
        lambda c: c.update(ranges=pa.array([[1.0, 2.0]], pa.list_(pa.float32()))),
        lambda c: c.update(ranges=pa.array([[1.0, np.nan, 1.0]], pa.list_(pa.float16()))),
        lambda c: c.update(ranges=pa.array([[1.0, -1.0, 1.0]], pa.list_(pa.float16()))),
        lambda c: c.update(ranges=pa.array([[1.0, None, 1.0]], pa.list_(pa.float16()))),
        lambda c: c.update(levels=pa.array([[[1], [2], [None]]], pa.list_(pa.list_(pa.uint8(), 1)))),
        lambda c: c.update(levels=pa.array([[[1], [2]]], pa.list_(pa.list_(pa.uint8(), 1)))),
        lambda c: c.update(levels=pa.array([[[], [], []]], pa.list_(pa.list_(pa.uint8(), 0)))),
        lambda c: c.update(levels=pa.array([b"abc"], pa.binary())),
    ],
)
def test_columns_that_no_encoder_wrote_are_refused(damage: Any) -> None:
    columns = dict(dense.encode(targets_of(0, 3, 5, 1.0), np.array([3]), np.zeros(3, np.int32)).columns)
    damage(columns)
    with pytest.raises(ValueError, match=r"column|range"):
        dense.decode(columns, np.array([3]), np.zeros(3, np.int32), (1.0,))
