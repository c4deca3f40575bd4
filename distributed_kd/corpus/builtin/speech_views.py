"""One recording heard in several ways: slower, faster, from another throat, in a room."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from distributed_kd.corpus.builtin.filterbanks import HOP, RATE, WINDOW, frames_of, log_mel, normalised
from distributed_kd.store.digest import sha256


@dataclass(frozen=True)
class View:
    speed: Fraction = Fraction(1)  # of the tape: pitch and tempo together
    warp: float = 1.0  # of the frequencies, at the same tempo
    echo: float = 0.0  # seconds until a room's echo has lost 60 dB; 0: no room
    noise: float = 0.0  # amplitude in the room, as a share of the speech's


# View 0 is the recording. The first few are a set of their own: a corpus may take as many as it wants.
VIEWS = (
    View(),
    View(speed=Fraction(9, 10)),
    View(warp=1.1, echo=0.2, noise=0.03),
    View(speed=Fraction(11, 10)),
    View(warp=0.9, echo=0.4, noise=0.01),
)


def features_of(samples: np.ndarray, view: View, name: str) -> np.ndarray:
    """[T, 40] float32 normalised filterbanks of `samples` ([n] int16) in a view; `name` draws its room and noise."""
    heard = resampled(samples.astype(np.float64), view.speed)
    if view.echo:
        heard = _in_room(heard, view, int(sha256(name.encode())[:32], 16))
    return normalised(log_mel(heard, view.warp))


def labels_in(labels: np.ndarray, samples: int, view: View) -> np.ndarray:
    """The labels [T] of `samples` samples for the frames of a view: of the frame whose middle was heard nearest."""
    if view.speed == 1:
        return labels
    middle = np.arange(frames_of(round(samples / view.speed))) * HOP + WINDOW / 2
    frames = np.rint((middle * float(view.speed) - WINDOW / 2) / HOP).astype(int)
    return labels[np.clip(frames, 0, len(labels) - 1)]


def resampled(samples: np.ndarray, speed: Fraction) -> np.ndarray:
    """[n / speed] of [n]: the same spectrum, cut off where the new rate ends."""
    if speed == 1:
        return samples
    unit = _power_of_two(len(samples) / speed.numerator)  # lengths that a fast transform likes
    before, after = unit * speed.numerator, unit * speed.denominator
    spectrum = np.fft.rfft(samples, before)[: after // 2 + 1]
    return np.fft.irfft(spectrum, after)[: round(len(samples) / speed)] * (after / before)


def _in_room(samples: np.ndarray, view: View, key: int) -> np.ndarray:
    """With a tail of noise that dies away after each sample, an eighth as loud as the sample itself, and noise."""
    length = round(view.echo * RATE)
    # Raw Philox output, whose stream is fixed for good.
    drawn = np.random.Philox(key=key).random_raw(length + len(samples)) / 2.0**63 - 1.0
    tail = drawn[:length] * 10.0 ** (-3.0 * np.arange(length) / length)
    tail /= np.sqrt(8.0 * np.sum(tail**2))
    tail[0] = 1.0  # what comes straight
    size = _power_of_two(len(samples) + length)
    heard = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)[: len(samples)]
    return heard + drawn[length:] * np.sqrt(3.0 * np.mean(samples**2)) * view.noise


def _power_of_two(least: float) -> int:
    return 1 << max(0, math.ceil(math.log2(least)))
