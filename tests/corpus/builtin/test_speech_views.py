"""Where a moment of a recording is in each of its views, and that a view is always the same."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from distributed_kd.corpus.builtin.filterbanks import BANDS, RATE, frames_of, log_mel
from distributed_kd.corpus.builtin.speech_views import VIEWS, View, features_of, labels_in, resampled
from tests.corpus.builtin.test_filterbanks import loudest, tone


def clicks(*seconds: float, length: float = 2.0) -> np.ndarray:
    """[n] int16: bursts of 20 ms in a faint noise."""
    samples = np.random.default_rng(0).integers(-4, 4, int(length * RATE)).astype(np.int16)
    for second in seconds:
        at = int(second * RATE)
        samples[at : at + RATE // 50] += np.random.default_rng(1).integers(-9000, 9000, RATE // 50).astype(np.int16)
    return samples


@pytest.mark.parametrize("view", VIEWS)
def test_labels_stay_with_what_they_are_the_labels_of(view: View) -> None:
    samples = clicks(0.4, 1.1, 1.7)
    energy = log_mel(samples).mean(axis=1)
    labels = (energy > energy.min() + 6).astype(np.int32)  # 1 in a burst
    assert 6 <= labels.sum() <= 15
    features, moved = features_of(samples, view, "clicks"), labels_in(labels, len(samples), view)
    assert features.shape == (len(moved), BANDS) == (frames_of(round(len(samples) / view.speed)), BANDS)
    heard = features.mean(axis=1)
    bursts = np.flatnonzero((moved[1:] == 1) & (moved[:-1] == 0)) + 1
    assert len(bursts) == 3
    for begin in bursts:  # it is loud from there on, and was not before
        assert heard[begin + 1] > heard[begin - 3] + 1


@pytest.mark.parametrize("speed", [Fraction(9, 10), Fraction(11, 10)])
def test_a_faster_tape_is_shorter_and_higher(speed: Fraction) -> None:
    found = resampled(tone(1000), speed)
    assert len(found) == round(RATE / 2 / speed)
    middle = slice(500, -500)
    expected = tone(1000 * float(speed), seconds=0.6)[: len(found)]
    np.testing.assert_allclose(found[middle], expected[middle], atol=50)  # of 5000
    assert loudest(log_mel(found)) == loudest(log_mel(tone(1000 * float(speed))))


def test_a_view_is_drawn_by_the_name_and_always_the_same() -> None:
    samples = clicks(0.4)
    for view in VIEWS:
        first, again, other = (features_of(samples, view, name) for name in ("a", "a", "b"))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any() == bool(view.echo)


def test_a_room_rings_on() -> None:
    after = slice(70, 80)  # 0.3 s after the burst
    silent, ringing = (log_mel(s).mean(axis=1) for s in (clicks(0.4), _heard(clicks(0.4), View(echo=1.0))))
    assert ringing[after].mean() > silent[after].mean() + 1
    assert abs(ringing[41] - silent[41]) < 0.5


def _heard(samples: np.ndarray, view: View) -> np.ndarray:
    from distributed_kd.corpus.builtin.speech_views import _in_room

    return _in_room(samples.astype(float), view, 7)
