"""Which HMM state of which phone each frame of an utterance belongs to, by forced alignment with pocketsphinx."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from distributed_kd.corpus.builtin.filterbanks import HOP, RATE, frames_of
from distributed_kd.corpus.builtin.prompts import needed
from distributed_kd.corpus.builtin.speech_words import PRONUNCIATIONS

STATES = 3
# Those of ARPABET but ZH, which no English prompt has.
_PHONES = [
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z",
]  # fmt: skip
CLASSES = ("silence", *(f"{phone}.{state}" for phone in _PHONES for state in range(STATES)))
_FIRST = {phone: 1 + STATES * number for number, phone in enumerate(_PHONES)}

_NOISE_FRAMES = 20


def align(samples: np.ndarray, words: list[str]) -> np.ndarray | None:
    """[T] int32 classes of the frames of `samples` ([n] int16); None where no alignment is found, with noise either."""
    noise = _noise(_NOISE_FRAMES * HOP)
    labels = _aligned(samples, words)
    if labels is None:
        labels = _aligned(np.concatenate([noise, samples, noise]), words)
        labels = None if labels is None else labels[_NOISE_FRAMES:-_NOISE_FRAMES]
    return labels


def frame_labels(phones: Iterable[tuple[str, list[int]]], frames: int) -> np.ndarray:
    """[frames] int32: each phone's states in turn, for as many frames as they last. What is no phone is silence.

    Raises `ValueError` where they do not last for `frames`.
    """
    classes: list[int] = []
    for phone, durations in phones:
        for state, duration in enumerate(durations):
            classes += [_FIRST[phone] + state if phone in _FIRST else 0] * duration
    if len(classes) != frames:
        raise ValueError(f"{len(classes)} frames are aligned of {frames}")
    return np.array(classes, np.int32)


def _aligned(samples: np.ndarray, words: list[str]) -> np.ndarray | None:
    decoder, audio = _decoder(), samples.tobytes()
    try:
        decoder.set_align_text(" ".join(words))
        _pass(decoder, audio)
        decoder.set_alignment()  # of what the first pass found
        _pass(decoder, audio)
        found = [(phone.name, [state.duration for state in phone]) for phone in decoder.get_alignment().phones()]
        return frame_labels(found, frames_of(len(samples)))
    except (RuntimeError, ValueError):  # pocketsphinx's own word for it; an alignment that ends too early
        return None


def _pass(decoder: Any, audio: bytes) -> None:
    decoder.reinit_feat()  # forgets the noise of what was heard before: an alignment depends on its utterance alone
    decoder.start_utt()
    decoder.process_raw(audio, full_utt=True)
    decoder.end_utt()


@cache
def _decoder() -> Any:
    """Once a process: the model takes a second to load."""
    decoder = needed("pocketsphinx").Decoder(samprate=RATE, lm=None, loglevel="FATAL")
    for word, phones in PRONUNCIATIONS.items():
        decoder.add_word(word, phones, False)
    return decoder


def _noise(samples: int) -> np.ndarray:
    """Always the same, from -4 to 3. Raw Philox output, whose stream is fixed for good."""
    return (np.random.Philox(key=0).random_raw(samples) >> np.uint64(61)).astype(np.int16) - np.int16(4)
