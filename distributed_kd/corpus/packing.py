"""Documents to sequences: which split a document is in, how it is cut, and which positions carry loss.

Pure functions of (document, settings): nothing depends on what else is read, or by how many workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from distributed_kd.corpus.sequences import Sequence
from distributed_kd.recipe import Corpus

SPLITS = ("train", "development", "validation")


def document_id(text: str) -> int:
    """The first 63 bits of the text's sha256: the same text is the same document, wherever it lies."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def split_of(document: int, corpus: Corpus) -> str | None:
    """The split a document is in, drawn by hash, so duplicates never straddle it; None: not used."""
    place = _uniform(corpus.seed, document)
    if place < corpus.validation_fraction:
        return "validation"
    if place < corpus.validation_fraction + corpus.development_fraction:
        return "development"
    if corpus.train_fraction is None or place >= 1.0 - corpus.train_fraction:
        return "train"
    return None


def pieces(document: int, ids: np.ndarray, corpus: Corpus) -> list[np.ndarray]:
    """The parts of a document that are used: all of it, or `sequences_per_document` windows drawn by hash."""
    if corpus.sequences_per_document is None:
        return [ids]
    length = corpus.sequence_length
    windows = [ids[start : start + length] for start in range(0, len(ids), length)]
    if len(windows) > 1 and len(windows[-1]) < length:
        windows.pop()
    drawn = sorted(range(len(windows)), key=lambda number: _uniform(corpus.seed, document, number))
    return [windows[number] for number in sorted(drawn[: corpus.sequences_per_document])]


def pack(parts: Iterable[tuple[int, np.ndarray]], corpus: Corpus) -> Iterator[Sequence]:
    """(document, ids) parts to sequences of at most `sequence_length` ids; the last one is as long as it is.

    `none` cuts each part alone; `concatenate` and `isolate` fill each sequence with the next part.
    """
    room = corpus.sequence_length
    held: list[tuple[int, np.ndarray]] = []
    for document, ids in parts:
        start = 0
        while start < len(ids):
            taken = ids[start : start + room]
            held.append((document, taken))
            start += len(taken)
            room -= len(taken)
            if room == 0 or (corpus.packing == "none" and start == len(ids)):
                yield from _sequence(held, corpus.packing)
                held, room = [], corpus.sequence_length
    yield from _sequence(held, corpus.packing)


def _sequence(held: list[tuple[int, np.ndarray]], packing: str) -> Iterator[Sequence]:
    if not held:
        return
    lengths = np.array([len(ids) for _, ids in held], dtype=np.int32)
    loss_mask = np.ones(lengths.sum(), dtype=bool)
    loss_mask[-1] = False  # position t predicts id t + 1, and the last one has none
    if packing == "isolate":
        loss_mask[np.cumsum(lengths) - 1] = False  # its next id belongs to another document
    if loss_mask.any():
        yield Sequence(
            sequence_id=-1,
            input_ids=np.concatenate([ids for _, ids in held]).astype(np.int32),
            loss_mask=loss_mask,
            documents=np.array([document for document, _ in held], dtype=np.int64),
            document_lengths=lengths,
            isolated=packing == "isolate",
        )


def _uniform(*key: int) -> float:
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2.0**56
