"""The mean of soft targets against dense means in float64, over the logarithms of every id of the vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_kd.cache.ensemble import Member, mean_of
from distributed_kd.cache.soft_targets import NO_ID, SoftTargets
from tests.cache.test_codec_compact import draw


def log_softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    return scaled - np.logaddexp.reduce(scaled, axis=1)[:, None]


def top_k(logits: np.ndarray, k: int, temperatures: tuple[float, ...]) -> SoftTargets:
    order = np.argsort(-logits, axis=1, kind="stable")
    ordered = np.take_along_axis(logits, order, axis=1)
    ordered = ordered - ordered[:, :1]
    odds = [
        np.logaddexp.reduce(ordered[:, k:].astype(float) / t, axis=1, initial=-np.inf)
        - np.logaddexp.reduce(ordered[:, :k].astype(float) / t, axis=1)
        for t in temperatures
    ]
    return SoftTargets(
        order[:, :k].astype(np.int32), ordered[:, :k], np.stack(odds, axis=1).astype(np.float32), temperatures
    )


def every_id(logits: np.ndarray, temperatures: tuple[float, ...]) -> SoftTargets:
    ids = np.broadcast_to(np.arange(logits.shape[1], dtype=np.int32), logits.shape)
    odds = np.full((len(logits), len(temperatures)), -np.inf, np.float32)
    return SoftTargets(ids, logits - logits.max(axis=1, keepdims=True), odds, temperatures)


def spread(member: Member, temperature: float, vocabulary: int) -> np.ndarray:
    """[N, V] log p of every id: those the member kept, and even shares of its tail for those it did not."""
    kept, tail = member.targets.log_probabilities_in_double(temperature)
    dense = np.full((len(kept), vocabulary), -np.inf)
    for row, ids in enumerate(member.targets.ids):
        own = {int(i): p for i, p in zip(ids, kept[row], strict=True) if i != NO_ID}
        others = [i for i in range(member.vocabulary_size) if i not in own]
        if others:
            dense[row, others] = tail[row] - np.log(len(others))
        for i, p in own.items():
            dense[row, i] = p
    return dense


def dense_mean(tables: list[np.ndarray], weights: list[float], mean: str) -> np.ndarray:
    if mean == "arithmetic":
        return np.logaddexp.reduce([np.log(w) + own for w, own in zip(weights, tables, strict=True)], axis=0)
    product = sum(w * own for w, own in zip(weights, tables, strict=True))
    return product - np.logaddexp.reduce(product, axis=1)[:, None]


def assert_is_mean(found: SoftTargets, members: list[Member], weights: list[float], mean: str) -> None:
    """The kept ids are the union of the members', the most probable first; every number is that of the dense mean."""
    vocabulary = max(member.vocabulary_size for member in members)
    for temperature in found.temperatures:
        expected = dense_mean([spread(member, temperature, vocabulary) for member in members], weights, mean)
        log_p, log_tail = found.log_probabilities(temperature)
        for row in range(len(found)):
            union = set().union(*(member.targets.ids[row].tolist() for member in members)) - {NO_ID}
            assert set(found.ids[row].tolist()) - {NO_ID} == union
            kept = found.ids[row] != NO_ID
            np.testing.assert_allclose(log_p[row, kept], expected[row, found.ids[row, kept]], rtol=1e-5, atol=1e-5)
            assert np.isneginf(log_p[row, ~kept]).all() and np.isneginf(found.logits[row, ~kept]).all()
            rest = [i for i in range(vocabulary) if i not in union]
            np.testing.assert_allclose(
                log_tail[row], np.logaddexp.reduce(expected[row, rest], initial=-np.inf), rtol=1e-5, atol=1e-5
            )
            mass = np.exp(log_p[row].astype(float)).sum() + np.exp(float(log_tail[row]))
            assert mass == pytest.approx(1.0, abs=1e-5)
    assert (found.logits[:, 0] == 0).all()
    assert (np.diff(np.where(found.ids != NO_ID, found.logits, -1e9), axis=1) <= 0).all()


@st.composite
def ensembles(draw_from: st.DrawFn, one_vocabulary: bool = False, whole: bool = False):
    """(members, weights, the members' logits [N, V_m]); kept sets overlap by how much members have in common."""
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    count, positions = draw_from(st.integers(2, 4)), draw_from(st.integers(1, 3))
    temperatures = tuple(
        draw_from(st.lists(st.sampled_from([0.5, 1.0, 2.0, 7.0]), min_size=1, max_size=3, unique=True))
    )
    sizes = draw_from(st.lists(st.integers(1, 14), min_size=count, max_size=count))
    sizes = [sizes[0]] * count if one_vocabulary else sizes
    ks = [size if whole else draw_from(st.integers(1, size)) for size in sizes]
    scale, common = draw_from(st.sampled_from([0.01, 2.0, 300.0])), draw_from(st.sampled_from([0.0, 1.0, 3.0]))
    shared = rng.normal(size=(positions, 14))
    logits = [
        (scale * (common * shared[:, :size] + rng.normal(size=(positions, size)))).astype(np.float32) for size in sizes
    ]
    members = [
        Member(every_id(own, temperatures) if whole else top_k(own, k, temperatures), size)
        for own, k, size in zip(logits, ks, sizes, strict=True)
    ]
    weights = rng.dirichlet(np.ones(count)) + 1e-6
    return members, (weights / weights.sum()).tolist(), logits


@settings(max_examples=150)
@given(ensembles())
def test_the_arithmetic_mean_is_the_dense_one_and_within_its_bound(case) -> None:
    members, weights, logits = case
    found, bound = mean_of(members, weights, "arithmetic", keeps_all=False)
    assert_is_mean(found, members, weights, "arithmetic")
    assert (found.log_p is not None) == (len(found.temperatures) > 1)
    vocabulary = max(member.vocabulary_size for member in members)
    for place, temperature in enumerate(found.temperatures):
        truth = np.zeros((len(found), vocabulary))
        for weight, own in zip(weights, logits, strict=True):
            truth[:, : own.shape[1]] += weight * np.exp(log_softmax(own, temperature))
        log_p, _ = found.log_probabilities(temperature)
        kept = found.ids != NO_ID
        distance = np.abs(np.exp(log_p) - np.take_along_axis(truth, np.maximum(found.ids, 0), axis=1))
        assert (np.where(kept, distance, 0).sum(axis=1) <= bound[:, place] + 1e-5).all()
        whole = all(member.targets.ids.shape[1] == member.vocabulary_size for member in members)
        assert not whole or (bound == 0).all()


@settings(max_examples=150)
@given(ensembles(one_vocabulary=True))
def test_the_geometric_mean_is_the_dense_one(case) -> None:
    members, weights, _ = case
    found, _ = mean_of(members, weights, "geometric", keeps_all=False)
    assert_is_mean(found, members, weights, "geometric")


@settings(max_examples=100)
@given(ensembles(one_vocabulary=True, whole=True), st.sampled_from(["arithmetic", "geometric"]))
def test_members_that_keep_all_have_the_exact_mean(case, mean: str) -> None:
    """Against softmaxes of the logits themselves; the geometric mean is one set of logits for every temperature."""
    members, weights, logits = case
    found, bound = mean_of(members, weights, mean, keeps_all=True)
    assert (found.ids == np.arange(logits[0].shape[1])).all()
    assert np.isneginf(found.tail_odds).all() and (bound == 0).all()
    assert (found.log_p is None) == (mean == "geometric" or len(found.temperatures) == 1)
    for temperature in found.temperatures:
        expected = dense_mean([log_softmax(own, temperature) for own in logits], weights, mean)
        np.testing.assert_allclose(found.log_probabilities(temperature)[0], expected, rtol=1e-5, atol=1e-5)


def test_the_bound_is_reached_where_one_id_has_all_that_can_be() -> None:
    """A member's tail of 0.2 over two ids lies on one of them: its share is 0.1 off, at a weight of a half."""
    temperatures = (1.0,)
    first = top_k(np.log(np.array([[0.8, 0.2 - 1e-9, 1e-9]], np.float32)), 1, temperatures)
    second = top_k(np.log(np.array([[0.1, 0.8, 0.1]], np.float32)), 2, temperatures)
    found, bound = mean_of([Member(first, 3), Member(second, 3)], [0.5, 0.5], "arithmetic", keeps_all=False)
    assert found.ids.tolist() == [[1, 0]]
    log_p, log_tail = found.log_probabilities(1.0)
    np.testing.assert_allclose(np.exp(log_p), [[0.45, 0.45]], rtol=1e-5)
    np.testing.assert_allclose(np.exp(log_tail), [0.1], rtol=1e-5)
    assert bound[0, 0] == pytest.approx(0.5 * 0.1)


def test_tails_beyond_float64_keep_their_odds() -> None:
    """Nearly certain members: tails of exp(-2000) are summed as logarithms, not rounded to nothing."""
    logits = np.zeros((1, 5), np.float32)
    logits[0, 0] = 2000.0
    members = [Member(top_k(logits, 1, (1.0,)), 5), Member(top_k(np.roll(logits, 1, axis=1), 1, (1.0,)), 5)]
    for mean, odds in (("arithmetic", np.log(3) - 2000), ("geometric", np.log(3) - 1000 - np.log(2))):
        found, _ = mean_of(members, [0.5, 0.5], mean, keeps_all=False)
        assert found.ids.tolist() == [[0, 1]]
        np.testing.assert_allclose(found.logits, 0.0, atol=1e-4)
        assert found.tail_odds[0, 0] == pytest.approx(odds, abs=1e-3)


def test_drawn_ids_are_pooled() -> None:
    """Weights in proportion to the draws: the mean is the frequency among all draws, and what nobody drew is 0."""
    few, _ = draw(40, 20, seed=1)
    many, _ = draw(40, 60, seed=2)
    found, _ = mean_of([Member(few, 300), Member(many, 300)], [0.25, 0.75], "arithmetic", keeps_all=False)
    log_p, log_tail = found.log_probabilities(1.0)
    assert np.isneginf(log_tail).all()
    for row in range(40):
        counts: dict[int, float] = {}
        for targets, draws in ((few, 20), (many, 60)):
            own, _ = targets.log_probabilities(1.0)
            for i, p in zip(targets.ids[row].tolist(), np.exp(own[row]) * draws, strict=True):
                if i != NO_ID:
                    counts[i] = counts.get(i, 0.0) + p
        kept = found.ids[row] != NO_ID
        assert set(found.ids[row, kept].tolist()) == counts.keys()
        np.testing.assert_allclose(
            np.exp(log_p[row, kept]) * 80, [counts[i] for i in found.ids[row, kept].tolist()], rtol=1e-4
        )


def test_an_id_that_one_member_rules_out_is_left_out_of_the_geometric_mean() -> None:
    some = SoftTargets(
        np.array([[2, 4]], np.int32), np.array([[0.0, -1.0]], np.float32), np.array([[-np.inf]], np.float32), (1.0,)
    )
    other = top_k(np.array([[5.0, 4.0, 3.0, 2.0, 1.0]], np.float32), 3, (1.0,))
    found, _ = mean_of([Member(some, 5), Member(other, 5)], [0.5, 0.5], "geometric", keeps_all=False)
    assert found.ids.tolist() == [[2, 4]]
    assert np.isneginf(found.tail_odds).all()
    apart = SoftTargets(np.array([[1]], np.int32), np.zeros((1, 1), np.float32), some.tail_odds, (1.0,))
    with pytest.raises(ValueError, match="no id in common"):
        mean_of([Member(some, 5), Member(apart, 5)], [0.5, 0.5], "geometric", keeps_all=False)


def test_targets_that_cannot_be_are_refused() -> None:
    good = top_k(np.zeros((1, 3), np.float32), 3, (1.0,))
    tailed = SoftTargets(good.ids, good.logits, np.zeros((1, 1), np.float32), (1.0,))
    with pytest.raises(ValueError, match="keeps every id and has a tail"):
        mean_of([Member(good, 3), Member(tailed, 3)], [0.5, 0.5], "arithmetic", keeps_all=False)
    with pytest.raises(ValueError, match="is to keep every id has a tail"):
        mean_of([Member(good, 4), Member(good, 4), Member(tailed, 4)], [0.3, 0.3, 0.4], "arithmetic", keeps_all=True)
