"""`builtin:speech`: 22 minutes of English telephone prompts, every frame labelled with a phone's HMM state.

One voice, Asterisk's prompts (see `prompts.py`), aligned with their transcripts (see `speech_align.py`).
"""

from __future__ import annotations

from pathlib import Path

from distributed_kd.corpus.builtin.prompts import Prompt, needed, prompts
from distributed_kd.corpus.builtin.speech_align import align
from distributed_kd.corpus.builtin.speech_rows import Utterance, utterance, write_rows
from distributed_kd.corpus.builtin.speech_words import spoken_words

VERSION = 1
EXTRA, PACKAGES = "speech", ("pocketsphinx", "G722")


def write(folder: Path) -> None:
    """`view-I.parquet` files of `utterance`, `document` (what is said), `view`, `features` [T, 40] and `labels` [T].

    Raises `RequestError` naming the package that is missing.
    """
    for module in PACKAGES:
        needed(module)
    with prompts(["en"]) as found:
        write_rows(folder, [prompt for prompt in found["en"] if spoken_words(prompt.transcript)], _row)


def _row(prompt: Prompt) -> Utterance | None:
    samples, words = prompt.samples(), spoken_words(prompt.transcript)
    labels = align(samples, words)
    return None if labels is None else utterance(prompt.name, words, samples, labels)
