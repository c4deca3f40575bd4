"""Rows with labels of their own: texts or images with a class each, and frames of speech with one class a frame.

Each row is a sequence, or several where it has more frames than a sequence takes. A text's or an image's class is the
label of one position; nothing is packed together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distributed_kd.corpus.augment import view_of
from distributed_kd.corpus.columns import Column, rows
from distributed_kd.corpus.cut import Piece
from distributed_kd.corpus.packing import SPLITS, document_of, id_of_digest, is_labelled, named_document, split_of
from distributed_kd.corpus.sequences import NO_LABEL, Sequence
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Corpus
from distributed_kd.store.digest import sha256


@dataclass(frozen=True)
class Inputs:
    """What the model takes and gives. width: numbers a position has, where it takes features; else a tokenizer."""

    classes: int
    width: int | None
    tokenizer: Any = None
    labels_alone: bool = False  # whether there is no teacher, so that nothing is learned where there is no label


@dataclass(frozen=True)
class _Row:
    document: int
    split: str
    place: str  # file and row, for messages
    ids: np.ndarray  # [S] int32
    labels: np.ndarray  # [1], or [S] of frames; NO_LABEL where there is none
    features: np.ndarray | None  # [S, F] float32


def sequences_of(pieces: list[Piece], corpus: Corpus, inputs: Inputs) -> dict[str, list[Sequence]]:
    """The pieces' sequences by split, in order. Raises `RequestError` naming the row that cannot be used."""
    found: dict[str, list[_Row]] = {split: [] for split in SPLITS}
    for row in _read(pieces, corpus, inputs):
        found[row.split].append(row)
    found["train"] = [
        _as_labelled(row, corpus, inputs.classes)
        for row in found["train"]
        if corpus.task != "classification" or int(row.labels[0]) not in corpus.without_classes
    ]
    found["train"] = list(_views(found["train"], corpus))
    return {split: [one for row in own for one in _cut(row, corpus, inputs)] for split, own in found.items()}


def _read(pieces: list[Piece], corpus: Corpus, inputs: Inputs) -> Iterator[_Row]:
    content_key = "features_column" if corpus.takes_features else "text_column"
    keys = [content_key, "label_column", "document_column", "view_column"]
    columns = [Column(key, name) for key in keys if (name := getattr(corpus, key)) is not None]
    for piece in pieces:
        for place, values in rows(piece, columns):
            row = dict(zip((column.key for column in columns), values, strict=True))
            content, features = row[content_key], None
            if inputs.width is not None:
                features = _features(content, corpus, inputs.width, place)
            document = _document(row, content if features is None else features, place)
            split = split_of(document, corpus)
            if split is not None and _is_wanted(row, split, corpus, place):
                ids = _ids(content, corpus, inputs, place) if features is None else np.zeros(len(features), np.int32)
                labels = _labels(row["label_column"], corpus, inputs.classes, len(ids), place)
                yield _Row(document, split, place, ids, labels, features)


def _is_wanted(row: dict[str, Any], split: str, corpus: Corpus, place: str) -> bool:
    """Whether the split has rows of that view: the training split the first few, the others that of view 0."""
    if corpus.view_column is None:
        return True
    view = row["view_column"]
    if not isinstance(view, int) or view < 0:
        raise RequestError(f"{place}: its view is {view!r}; corpus.view_column needs a whole number from 0")
    return view < (corpus.views if split == "train" else 1)


def _document(row: dict[str, Any], content: Any, place: str) -> int:
    if "document_column" in row:
        return named_document(row["document_column"], place)
    if isinstance(content, np.ndarray):
        return id_of_digest(hashlib.sha256(content.astype("<f4").tobytes()).digest())
    return document_of(str(content), place)


def _ids(text: Any, corpus: Corpus, inputs: Inputs, place: str) -> np.ndarray:
    if not isinstance(text, str):
        raise RequestError(f"{place}: column {corpus.text_column!r} is {type(text).__name__}, not a text")
    encoded = inputs.tokenizer(text, truncation=True, max_length=corpus.sequence_length).input_ids
    if not encoded:
        raise RequestError(f"{place}: the tokenizer makes no id of this text; leave the row out")
    return np.array(encoded, np.int32)


def _features(content: Any, corpus: Corpus, width: int, place: str) -> np.ndarray:
    """[S, F] float32; an image's numbers, flat or in rows, are one position."""
    try:
        features = np.array(content, np.float32)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{place}: column {corpus.features_column!r} is no array of numbers ({error})") from error
    if corpus.image_shape is not None and features.ndim == 2 and features.shape != corpus.image_shape:
        shape, wanted = (" x ".join(map(str, own)) for own in (features.shape, corpus.image_shape))
        raise RequestError(f"{place}: an image of {shape} is not of corpus.image_shape {wanted}; all must be")
    features = features.reshape(1, -1) if corpus.task == "classification" else features
    if features.ndim != 2 or features.shape[1] != width or not len(features):
        shape = " x ".join(map(str, features.shape))
        raise RequestError(
            f"{place}: its features are {shape}, and the model takes {width} numbers a position; all rows must be of "
            "that size"
        )
    if not np.isfinite(features).all():
        raise RequestError(f"{place}: one of its features is not a finite number; mend or leave out the row")
    return features


def _labels(value: Any, corpus: Corpus, classes: int, positions: int, place: str) -> np.ndarray:
    given = value if isinstance(value, list) else [value]
    wanted = positions if corpus.task == "frames" else 1
    if len(given) != wanted:
        raise RequestError(f"{place}: {len(given)} labels for {wanted} {corpus.task}; each needs one")
    labels = [NO_LABEL if one is None else one for one in given]
    for number, one in enumerate(labels):
        if not isinstance(one, int) or not (0 <= one < classes or one == NO_LABEL):
            where = f"frame {number} of {place}" if corpus.task == "frames" else place
            raise RequestError(
                f"{where}: the label is {one!r}, and the model has classes 0 to {classes - 1} ({NO_LABEL}: none known)"
            )
    return np.array(labels, np.int32)


def _as_labelled(row: _Row, corpus: Corpus, classes: int) -> _Row:
    """The training row with the labels that the recipe lets it have."""
    if not is_labelled(row.document, corpus):
        return replace(row, labels=np.full_like(row.labels, NO_LABEL))
    return _noisy(row, corpus, classes)


def _noisy(row: _Row, corpus: Corpus, classes: int) -> _Row:
    """The row with another class than its own, for `label_noise` of them, drawn by hash."""
    if corpus.label_noise == 0.0 or row.labels[0] == NO_LABEL:
        return row
    drawn = np.random.Philox(key=_key("label", corpus.seed, row)).random_raw(2)
    if drawn[0] / 2.0**64 >= corpus.label_noise:
        return row
    other = (int(row.labels[0]) + 1 + int(drawn[1] % np.uint64(classes - 1))) % classes
    return replace(row, labels=np.array([other], np.int32))


def _views(found: list[_Row], corpus: Corpus) -> Iterator[_Row]:
    """Each training row as often as it is wanted; of an image that is augmented, another view each time."""
    for row in found:
        for view in range(1 if corpus.view_column is not None else corpus.views):
            if not corpus.augment or (corpus.keep_original and view == 0):
                yield row
                continue
            key = _key("view", corpus.seed, view, row)
            assert corpus.image_shape is not None  # the recipe's own rule
            partner = found[key % len(found)]
            image, other = (_image(one, corpus.image_shape) for one in (row, partner))
            made = view_of(image, other, list(corpus.augment), key, corpus.augment_strength)
            yield replace(row, features=made.reshape(1, -1))


def _image(row: _Row, shape: tuple[int, int]) -> np.ndarray:
    assert row.features is not None
    if row.features.size != shape[0] * shape[1]:
        raise RequestError(
            f"{row.place}: an image of {row.features.size} numbers is not of corpus.image_shape {shape[0]} x {shape[1]}"
        )
    return row.features.reshape(shape)


def _key(*parts: Any) -> int:
    """Of a row it is the document and the content that count, not where it lies."""
    row: _Row = parts[-1]
    content = row.ids.tobytes() if row.features is None else row.features.tobytes()
    return int(sha256(repr((*parts[:-1], row.document, content)).encode())[:32], 16)


def _cut(row: _Row, corpus: Corpus, inputs: Inputs) -> Iterator[Sequence]:
    """The row as one sequence; of frames, as many as it takes. What has no label is not scored held out, and not
    trained on without a teacher."""
    longest = corpus.sequence_length if corpus.task == "frames" else len(row.ids)
    for begin in range(0, len(row.ids), longest):
        own = slice(begin, begin + longest)
        ids = row.ids[own]
        labels = row.labels[own] if corpus.task == "frames" else row.labels
        loss_mask = np.ones(len(ids), bool) if corpus.task == "frames" else np.arange(len(ids)) == 0
        if row.split != "train" or inputs.labels_alone:
            loss_mask[loss_mask] = labels != NO_LABEL
            labels = labels[labels != NO_LABEL]
        if loss_mask.any():
            yield Sequence(
                sequence_id=-1,
                input_ids=ids,
                loss_mask=loss_mask,
                documents=np.array([row.document], np.int64),
                document_lengths=np.array([len(ids)], np.int32),
                isolated=False,
                given_labels=labels,
                features=None if row.features is None else row.features[own],
            )
