"""Log mel filterbanks of 16 kHz audio: 40 bands every 10 ms, in the frames that the aligner counts."""

from __future__ import annotations

from functools import cache

import numpy as np

RATE = 16_000
BANDS = 40
HOP = 160  # samples: 10 ms
WINDOW = 410  # samples: the 25.625 ms of pocketsphinx, so that its frames are these
_FFT = 512
_LOWEST, _HIGHEST = 60.0, 7000.0  # Hz; G.722 carries nothing above
_PREEMPHASIS = 0.97
_STEP = 1 / 128


def frames_of(samples: int) -> int:
    """Frames that so many samples are: all whole ones and one more, filled up with zeros."""
    return max(1, (samples - WINDOW) // HOP + 2)


def log_mel(samples: np.ndarray, warp: float = 1.0) -> np.ndarray:
    """[T, 40] float64 natural logarithms of each band's energy.

    `samples`: [n] on the scale of int16. `warp`: frequencies are multiplied by it, as a shorter (above 1) or longer
    vocal tract does, while time stays as it is.
    """
    count = frames_of(len(samples))
    padded = np.zeros((count - 1) * HOP + WINDOW)
    padded[: len(samples)] = samples
    padded[1:] -= _PREEMPHASIS * padded[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hamming(WINDOW)
    energy = np.abs(np.fft.rfft(frames, _FFT)) ** 2 @ mel_bands(warp)
    return np.log(np.maximum(energy, 1.0))  # 1: far below what one unit of int16 sounds like


def normalised(features: np.ndarray) -> np.ndarray:
    """[T, 40] float32 of mean 0 and variance 1 in each band, in steps of 1/128.

    The steps are far below any noise of speech and compress to a third; they hide the last bits of an FFT, in which
    processors differ. A band that never changes is 0.
    """
    spread = features.std(axis=0)
    centred = (features - features.mean(axis=0)) / np.where(spread > 1e-6, spread, np.inf)
    return (np.rint(centred / _STEP) * _STEP).astype(np.float32)


@cache
def mel_bands(warp: float) -> np.ndarray:
    """[257, 40] weights: triangles of equal width on the mel scale, each of height 1."""
    edges = np.linspace(_mel(_LOWEST), _mel(_HIGHEST), BANDS + 2)
    bins = _mel(np.arange(_FFT // 2 + 1) * RATE / _FFT * warp)[:, None]
    below, centre, above = edges[:-2], edges[1:-1], edges[2:]
    return np.maximum(0.0, np.minimum((bins - below) / (centre - below), (above - bins) / (above - centre)))


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)
