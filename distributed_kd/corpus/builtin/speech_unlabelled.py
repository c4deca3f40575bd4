"""`builtin:speech_unlabelled`: the same prompts in Spanish, French, Italian and Russian, for soft targets alone.

The columns are those of `builtin:speech`; every label is -100, which is none. The Spanish voice is the English one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from distributed_kd.corpus.builtin.filterbanks import frames_of
from distributed_kd.corpus.builtin.prompts import Prompt, needed, prompts
from distributed_kd.corpus.builtin.speech_rows import Utterance, utterance, write_rows
from distributed_kd.corpus.builtin.speech_words import words_of

VERSION = 1
EXTRA, PACKAGES = "speech", ("G722",)
NO_LABEL = -100
_LANGUAGES = ["es", "fr", "it", "ru"]


def write(folder: Path) -> None:
    """As `speech.write`; an utterance's name begins with its language."""
    for module in PACKAGES:
        needed(module)
    with prompts(_LANGUAGES) as found:
        named = [
            replace(prompt, name=f"{language}/{prompt.name}")
            for language in _LANGUAGES
            for prompt in found[language]
            if words_of(prompt.transcript)
        ]
        write_rows(folder, named, _row)


def _row(prompt: Prompt) -> Utterance:
    samples = prompt.samples()
    labels = np.full(frames_of(len(samples)), NO_LABEL, np.int32)
    return utterance(prompt.name, words_of(prompt.transcript), samples, labels)
