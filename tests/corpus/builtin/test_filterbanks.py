"""40 log mel bands every 10 ms: against the definition, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from distributed_kd.corpus.builtin.filterbanks import BANDS, RATE, frames_of, log_mel, mel_bands, normalised


def tone(hertz: float, seconds: float = 0.5, amplitude: float = 5000.0) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)


def loudest(features: np.ndarray) -> int:
    return int(np.argmax(features[5:-5].mean(axis=0)))


def test_a_frame_is_the_energy_of_its_window_in_each_band() -> None:
    from transformers.audio_utils import mel_filter_bank

    samples = np.random.default_rng(0).integers(-3000, 3000, 1000).astype(np.int16)
    emphasised = samples.astype(float)
    emphasised[1:] -= 0.97 * samples[:-1]
    padded = np.concatenate([emphasised, np.zeros(410)])
    padded[1000] = -0.97 * samples[-1]
    waves = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(410)) / 512)
    bands = mel_filter_bank(257, BANDS, 60, 7000, RATE, mel_scale="kaldi", triangularize_in_mel_space=True)
    found = log_mel(samples)
    assert found.shape == (5, BANDS) and frames_of(1000) == 5
    for frame in range(5):
        window = padded[160 * frame : 160 * frame + 410] * np.hamming(410)
        expected = np.log(np.abs(waves @ window) ** 2 @ bands)
        np.testing.assert_allclose(found[frame], expected, rtol=1e-9)


@pytest.mark.parametrize(("samples", "frames"), [(0, 1), (409, 1), (410, 2), (569, 2), (570, 3), (78_490, 490)])
def test_frames_are_those_of_the_aligner(samples: int, frames: int) -> None:
    assert frames_of(samples) == frames == len(log_mel(np.zeros(samples)))


def test_a_warp_moves_a_tone_to_where_it_would_be_heard() -> None:
    for warp in (0.9, 1.1):
        assert loudest(log_mel(tone(1000), warp)) == loudest(log_mel(tone(1000 * warp))) != loudest(log_mel(tone(1000)))


def test_each_band_is_normalised_in_steps_that_compress() -> None:
    features = np.random.default_rng(1).normal(7.0, 3.0, (400, BANDS))
    features[:, 5] = 2.5
    found = normalised(features)
    assert found.dtype == np.float32 and (found * 128 == np.rint(found * 128)).all()
    assert (found[:, 5] == 0).all()
    others = np.delete(found, 5, axis=1)
    np.testing.assert_allclose(others.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(others.std(axis=0), 1, atol=1e-3)
    assert np.isfinite(normalised(log_mel(np.zeros(5000)))).all()  # digital silence


def test_every_band_hears_something() -> None:
    for warp in (0.9, 1.0, 1.1):
        assert mel_bands(warp).shape == (257, BANDS) and (mel_bands(warp).max(axis=0) > 0.5).all()
