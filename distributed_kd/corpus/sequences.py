"""The sequences artifact: packed token ids with their documents and loss mask, in shards.

Position `t` of a causal sequence predicts token `t + 1`; any other gives the label of each scored position. Where a
position is an image or a frame of speech and no token, its ids are 0 and `features` has its numbers.
`loss_mask` says which positions carry loss: only those are captured, stored and trained on. Shards are numbered
through, training first, and the manifest says which numbers belong to which split. Layout: `manifest.json`,
`index.arrow`, `shards/NNNNNNNN.arrow`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from distributed_kd.errors import RequestError
from distributed_kd.recipe import Corpus, Recipe
from distributed_kd.store.arrow import table_of
from distributed_kd.store.digest import differences
from distributed_kd.store.disk_cache import DiskCache
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import IndexReference, ShardIndex, read_index, read_known, shard_name
from distributed_kd.store.manifest import Manifest

FOLDER = "sequences"

# Where a corpus and a tokenizer lie changes nothing, given their digests.
_NOT_IN_FINGERPRINT = {"source", "tokenizer"}
SCHEMA = pa.schema(
    [
        ("sequence_id", pa.int64()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("documents", pa.list_(pa.int64())),
        ("document_lengths", pa.list_(pa.int32())),
    ]
)
# Columns more: where labels are not the next ids, and where positions are no tokens.
LABELS = pa.field("labels", pa.list_(pa.int32()))
FEATURES = pa.field("features", pa.list_(pa.float32()))
COLUMNS = {*SCHEMA.names, LABELS.name, FEATURES.name}
NO_LABEL = -100


@dataclass(frozen=True)
class Sequence:
    """One row: S ids, S mask bits, and the runs of documents they come from."""

    sequence_id: int
    input_ids: np.ndarray  # [S] int32
    loss_mask: np.ndarray  # [S] bool
    documents: np.ndarray  # [runs] int64
    document_lengths: np.ndarray  # [runs] int32, summing to S
    isolated: bool  # whether a document sees only itself
    given_labels: np.ndarray | None = None  # [positions] int32, where labels are not the next ids
    features: np.ndarray | None = None  # [S, F] float32, where positions are no tokens

    @property
    def positions(self) -> int:
        return int(self.loss_mask.sum())

    def without_loss(self) -> Sequence:
        """The same row, none of whose positions carries loss."""
        labels = None if self.given_labels is None else self.given_labels[:0]
        return replace(self, loss_mask=np.zeros_like(self.loss_mask), given_labels=labels)

    @property
    def position_ids(self) -> np.ndarray:
        """[S] int64: counted from the beginning of the sequence, or of the document where documents are isolated."""
        if not self.isolated:
            return np.arange(len(self.input_ids))
        return np.concatenate([np.arange(length) for length in self.document_lengths])

    @property
    def labels(self) -> np.ndarray:
        """[S] int64: at positions that carry loss the next id, or what is given; `NO_LABEL` elsewhere."""
        if self.given_labels is None:
            shifted = np.append(self.input_ids[1:], NO_LABEL).astype(np.int64)
            return np.where(self.loss_mask, shifted, NO_LABEL)
        labels = np.full(len(self.input_ids), NO_LABEL, np.int64)
        labels[self.loss_mask] = self.given_labels
        return labels

    @property
    def position_documents(self) -> np.ndarray:
        """[positions] int64: the document of each scored position."""
        return np.repeat(self.documents, self.document_lengths)[self.loss_mask]


class TokenizerIdentity(BaseModel):
    name: str
    sha256: str
    vocabulary_size: int


class SplitSummary(BaseModel):
    """Shards `first_shard` up to and without `end_shard`."""

    documents: int
    sequences: int
    positions: int
    first_shard: int
    end_shard: int
    unlabelled: int = 0  # positions with no hard label


class SequencesManifest(Manifest):
    format: Literal["dkd-sequences"] = "dkd-sequences"
    version: Literal[1] = 1
    tokenizer: TokenizerIdentity
    sequence_length: int
    packing: Literal["concatenate", "isolate", "none"]
    splits: dict[str, SplitSummary]
    index: IndexReference


_OF_ROWS = {"features_column", "label_column", "view_column", "label_noise", "without_classes", "labelled_fraction"}
_OF_IMAGES = {"image_shape", "augment", "augment_strength", "keep_original"}
# Keys that are younger than sequences made without them: only where they are not as they were then.
_YOUNGER = {"augment_strength": 1.0, "keep_original": False}
_OF_DOCUMENTS = {"packing", "sequences_per_document"}


def made_from_corpus(corpus: Corpus) -> dict[str, Any]:
    """What of the recipe's corpus decides what sequences are."""
    are_images = corpus.task == "classification" and corpus.takes_features
    not_read = _OF_DOCUMENTS if corpus.is_of_rows else _OF_ROWS
    if not corpus.is_of_rows and corpus.document_column is None:
        not_read = not_read | {"document_column"}  # which is younger than sequences of documents
    not_read = not_read | ({"messages_column"} if corpus.task != "chat" else {"text_column"})
    if corpus.takes_features:
        not_read |= {"text_column"}
    if corpus.task != "masked_lm":
        not_read |= {"mask_fraction"}
    if not are_images:
        not_read |= _OF_IMAGES | (set() if corpus.task == "masked_lm" or corpus.view_column else {"views"})
    not_read |= {key for key, before in _YOUNGER.items() if getattr(corpus, key) == before}
    return corpus.model_dump(mode="json", exclude=_NOT_IN_FINGERPRINT | not_read)


class Sequences:
    """Reader. `open` raises `RequestError` when there is no finished artifact."""

    def __init__(self, store: Store, manifest: SequencesManifest, entries: ShardIndex) -> None:
        self.store = store
        self.manifest = manifest
        self._entries = entries

    @classmethod
    def open(cls, workdir: Store) -> Sequences:
        store = workdir.child(FOLDER)
        manifest = SequencesManifest.read(store)
        if manifest is None:
            raise RequestError(f"{store.uri} holds no finished sequences; run `dkd prepare` first")
        entries = read_index(store, manifest.index)
        fit = all(0 <= split.first_shard <= split.end_shard <= len(entries) for split in manifest.splits.values())
        if not fit or not entries.is_numbered_through:
            raise RequestError(
                f"{store.uri}: the index lists other shards than the manifest's splits; delete that folder and run "
                "`dkd prepare` again"
            )
        return cls(store, manifest, entries)

    @classmethod
    def of(cls, recipe: Recipe) -> Sequences:
        """Those of the recipe's workdir. Raises `RequestError`, listing what differs, when another corpus was cut."""
        found = cls.open(Store(recipe.workdir))
        lines = differences(found.manifest.made_from["corpus"], made_from_corpus(recipe.corpus), "corpus")
        if lines:
            raise RequestError(
                f"{found.store.uri} holds sequences made from something else ({'; '.join(lines[:6])}); "
                "choose another `workdir`, or delete that folder to prepare them again"
            )
        return found

    def shards(self, split: str) -> ShardIndex:
        summary = self.manifest.splits[split]
        return self._entries[summary.first_shard : summary.end_shard]

    def read(self, shard: int) -> list[Sequence]:
        return self.rows(shard, self.table(shard))

    def table(self, shard: int, disk: DiskCache | None = None) -> pa.Table:
        """The shard, checked and not decoded, kept on `disk` for the next who wants it."""
        entry, name = self._entries[shard], shard_name(shard)

        def known() -> bytes:
            return read_known(self.store, name, entry, "make the artifact again")

        return table_of(known() if disk is None else disk.read(entry.sha256, known), f"{self.store.uri}/{name}")

    def rows(self, shard: int, table: pa.Table) -> list[Sequence]:
        """The sequences in the table of a shard, or in a slice of it."""
        try:
            return rows_to_sequences(table, self.manifest.packing == "isolate")
        except ValueError as error:
            raise RequestError(f"{self.store.uri}/{shard_name(shard)} is damaged: {error}") from error


def sequences_to_columns(sequences: list[Sequence]) -> dict[str, pa.Array]:
    """The columns of `SCHEMA`, and `LABELS` where they are given; one row a sequence."""

    def lists(arrays: list[np.ndarray], kind: pa.DataType) -> pa.Array:
        offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
        values = np.concatenate(arrays) if arrays else np.empty(0)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=kind))

    columns = {
        "sequence_id": pa.array([sequence.sequence_id for sequence in sequences], pa.int64()),
        "input_ids": lists([sequence.input_ids for sequence in sequences], pa.int32()),
        "loss_mask": lists([sequence.loss_mask for sequence in sequences], pa.bool_()),
        "documents": lists([sequence.documents for sequence in sequences], pa.int64()),
        "document_lengths": lists([sequence.document_lengths for sequence in sequences], pa.int32()),
    }
    given = [sequence.given_labels for sequence in sequences if sequence.given_labels is not None]
    if given:
        assert len(given) == len(sequences)  # of one task
        columns[LABELS.name] = lists(given, pa.int32())
    features = [sequence.features.ravel() for sequence in sequences if sequence.features is not None]
    if features:
        assert len(features) == len(sequences)
        columns[FEATURES.name] = lists(features, pa.float32())
    return columns


def rows_to_sequences(table: pa.Table, isolated: bool) -> list[Sequence]:
    """The inverse of `sequences_to_columns`; further columns are ignored. Raises `ValueError` for what is not one."""
    values, lengths = {}, {}
    more = [field for field in (LABELS, FEATURES) if field.name in table.column_names]
    for field in [*SCHEMA, *more]:
        column = one_chunk(table, field.name)
        if column.type != field.type:
            raise ValueError(f"column {field.name} is {column.type}, not {field.type}")
        if pa.types.is_list(field.type):
            lengths[field.name] = column.value_lengths().to_numpy()
            column = column.flatten()
        if column.null_count:
            raise ValueError(f"column {field.name} has nulls")
        values[field.name] = column.to_numpy(zero_copy_only=False)
    if not np.array_equal(lengths["input_ids"], lengths["loss_mask"]):
        raise ValueError("a sequence's loss mask is not as long as its ids")
    if not np.array_equal(lengths["documents"], lengths["document_lengths"]):
        raise ValueError("a sequence has more documents than lengths of them, or fewer")
    runs = values["document_lengths"].astype(np.int64)
    sums = np.diff(np.cumsum([0, *runs])[np.cumsum([0, *lengths["documents"]])])
    if (runs < 0).any() or not np.array_equal(sums, lengths["input_ids"]):
        raise ValueError("a sequence's documents are not as long as it is")

    def split(name: str) -> list[np.ndarray]:
        return np.split(values[name], np.cumsum(lengths[name])[:-1]) if table.num_rows else []

    columns = zip(
        values["sequence_id"].tolist(),
        split("input_ids"), split("loss_mask"), split("documents"), split("document_lengths"),
        strict=True,
    )  # fmt: skip
    sequences = [Sequence(*row, isolated=isolated) for row in columns]
    if LABELS in more:
        if not np.array_equal(lengths[LABELS.name], [sequence.positions for sequence in sequences]):
            raise ValueError("a sequence has more labels than scored positions, or fewer")
        sequences = [replace(one, given_labels=own) for one, own in zip(sequences, split(LABELS.name), strict=True)]
    if FEATURES in more:
        width = _width(lengths[FEATURES.name], lengths["input_ids"])
        rows = (own.reshape(-1, width) for own in split(FEATURES.name))
        sequences = [replace(one, features=own) for one, own in zip(sequences, rows, strict=True)]
    return sequences


def _width(numbers: np.ndarray, positions: np.ndarray) -> int:
    """F of sequences with so many numbers and positions each. Raises `ValueError` where it is not one for all."""
    width = int(numbers[0] // max(1, positions[0])) if len(numbers) else 1
    if width < 1 or not np.array_equal(numbers, positions * width):
        raise ValueError("a sequence's features are not of one width, or not as many as its positions")
    return width


def one_chunk(table: pa.Table, name: str) -> pa.Array:
    """A column without nulls as one array. Raises `ValueError` when it is not there once, or has nulls."""
    if table.column_names.count(name) != 1:
        raise ValueError(f"there is no column {name}, or more than one")
    column = table.column(name).combine_chunks()
    if column.null_count:
        raise ValueError(f"column {name} has nulls")
    return column
