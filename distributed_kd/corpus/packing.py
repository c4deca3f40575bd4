"""Documents to sequences: which split a document is in, how it is cut, and which positions carry loss.

Pure functions of (document, settings): nothing depends on what else is read, or by how many workers. A stream of
parts may lie in several files; `spans` says which of its sequences begin in which, so that each file is packed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Corpus

SPLITS = ("train", "development", "validation")


@dataclass(frozen=True)
class Part:
    """A document's ids, or some of them in their order."""

    document: int
    ids: np.ndarray  # [n] int32
    said: np.ndarray  # [n] bool: ids to be predicted; all of a text, the assistant's of a conversation
    begins: bool = True  # False: it goes on with the document of the part before

    def __getitem__(self, cut: slice) -> Part:
        return replace(self, ids=self.ids[cut], said=self.said[cut])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Extent:
    """How many ids of a split a file of parts holds, and how many of them before and after where documents begin."""

    tokens: int
    head: int  # ids that go on with a document of the file before
    tail: int  # ids since the last document's beginning; all where none begins

    @classmethod
    def of(cls, parts: list[Part]) -> Extent:
        lengths = [len(part) for part in parts]
        begins = [number for number, part in enumerate(parts) if part.begins]
        total = sum(lengths)
        if not begins:
            return cls(total, total, total)
        return cls(total, sum(lengths[: begins[0]]), sum(lengths[begins[-1] :]))


@dataclass(frozen=True)
class Span:
    """The sequences that begin in a file of parts: from `skip` ids on, and `take` ids of the files after it."""

    skip: int
    take: int


def document_id(text: str) -> int:
    """The first 63 bits of the text's sha256: the same text is the same document, wherever it lies."""
    return id_of_digest(hashlib.sha256(text.encode()).digest())


def document_of(text: str, place: str) -> int:
    """`document_id` of what was read at a place. Raises `RequestError` where it is no text."""
    try:
        return document_id(text)
    except UnicodeEncodeError as error:
        raise RequestError(f"{place} holds half a surrogate pair, which is no text; repair that row") from error


def named_document(name: Any, place: str) -> int:
    """The document of a row by what `corpus.document_column` has there. Raises `RequestError` where that is no name."""
    if not isinstance(name, str | int):
        raise RequestError(f"{place}: its document is {name!r}; corpus.document_column needs a text or a number")
    return document_of(str(name), place)


def id_of_digest(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big") >> 1


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


def is_labelled(document: int, corpus: Corpus) -> bool:
    """Whether the labels of a training document are read: `labelled_fraction` of them, drawn by hash."""
    return _uniform("labelled", corpus.seed, document) < corpus.labelled_fraction


class Windows:
    """The windows of a document that are used, `sequences_per_document` drawn by hash, while its parts come by.

    Holds no more than those and one that is not full. A last one that is not full is used only if it is the first.
    """

    def __init__(self, document: int, corpus: Corpus, wanted: int) -> None:
        self._document, self._corpus, self._wanted = document, corpus, wanted
        self._held: Part | None = None
        self._number = 0
        self._drawn: list[tuple[float, int, Part]] = []

    def add(self, part: Part) -> None:
        length = self._corpus.window
        held = part if self._held is None else _joined([self._held, part])
        while len(held) >= length:
            self._draw(held[:length])
            held = held[length:]
        self._held = held

    def parts(self) -> list[Part]:
        if self._number == 0 and self._held is not None and len(self._held):
            self._draw(self._held)
        return [replace(part, begins=True) for _, _, part in sorted(self._drawn, key=lambda drawn: drawn[1])]

    def _draw(self, window: Part) -> None:
        self._drawn.append((_uniform(self._corpus.seed, self._document, self._number), self._number, window))
        self._drawn = sorted(self._drawn, key=lambda drawn: drawn[:2])[: self._wanted]
        self._number += 1


def spans(extents: list[Extent], corpus: Corpus) -> list[Span]:
    """Of the files of one stream of parts, in order: which ids each packs, so that together they pack all of them."""
    length = corpus.window
    found: list[Span] = []
    open_ids = 0  # of the sequence that is open where a file begins
    for extent in extents:
        alone = corpus.packing == "none"
        skip = min(-open_ids % length, extent.head if alone else extent.tokens)
        begins_anew = alone and extent.head < extent.tokens
        open_ids = (extent.tail if begins_anew else open_ids + extent.tokens) % length
        found.append(Span(skip, -open_ids % length if skip < extent.tokens else 0))
    return found


def spanned(own: Iterable[Part], following: Iterable[Part], span: Span, corpus: Corpus) -> Iterator[Part]:
    """The parts to pack: those of a file without what it skips, and as much of the following ones as it takes."""
    skip, take = span.skip, span.take
    for part in own:
        if skip < len(part):
            yield part[skip:]
        skip = max(0, skip - len(part))
    for part in following:
        if not take or (part.begins and corpus.packing == "none"):
            return
        yield part[:take]
        take -= min(take, len(part))


def pack(parts: Iterable[Part], corpus: Corpus) -> Iterator[Sequence]:
    """Parts to sequences of at most `Corpus.window` ids; the last one is as long as it is.

    `none` cuts each document alone; `concatenate` and `isolate` fill each sequence with the next part.
    """
    room = corpus.window
    held: list[Part] = []
    for part in parts:
        if held and part.begins and corpus.packing == "none":
            yield from _sequence(held, corpus.packing)
            held, room = [], corpus.window
        rest = part
        while len(rest):
            taken, rest = rest[:room], rest[room:]
            held.append(taken)
            room -= len(taken)
            if room == 0:
                yield from _sequence(held, corpus.packing)
                held, room = [], corpus.window
    yield from _sequence(held, corpus.packing)


def _sequence(held: list[Part], packing: str) -> Iterator[Sequence]:
    """One sequence, if any position of it carries loss: position t predicts id t + 1, and the last one has none."""
    if not held:
        return
    runs: list[list[Part]] = []
    for part in held:
        if part.begins or not runs:
            runs.append([])
        runs[-1].append(part)
    lengths = np.array([sum(map(len, run)) for run in runs], dtype=np.int32)
    loss_mask = np.append(np.concatenate([part.said for part in held])[1:], False)
    if packing == "isolate":
        loss_mask[np.cumsum(lengths) - 1] = False  # its next id belongs to another document
    if loss_mask.any():
        yield Sequence(
            sequence_id=-1,
            input_ids=np.concatenate([part.ids for part in held]).astype(np.int32),
            loss_mask=loss_mask,
            documents=np.array([run[0].document for run in runs], dtype=np.int64),
            document_lengths=lengths,
            isolated=packing == "isolate",
        )


def _joined(parts: list[Part]) -> Part:
    ids, said = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "said"))
    return replace(parts[0], ids=ids, said=said)


def _uniform(*key: int | str) -> float:
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2.0**56
