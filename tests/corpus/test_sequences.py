"""The sequences artifact as its reader finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_kd.corpus.sequences import (
    FOLDER,
    Sequences,
    SequencesManifest,
    SplitSummary,
    TokenizerIdentity,
    made_from_corpus,
)
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Corpus
from distributed_kd.store.digest import fingerprint
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, put_index


def write(workdir: Store, shards: list[int], splits: dict[str, tuple[int, int]]) -> None:
    store = workdir.child(FOLDER)
    made_from = {"test": 1}
    SequencesManifest(
        made_from=made_from, fingerprint=fingerprint(made_from), sequence_length=16, packing="none",
        tokenizer=TokenizerIdentity(name="t", sha256="x", vocabulary_size=64),
        splits={
            name: SplitSummary(documents=1, sequences=1, positions=1, first_shard=first, end_shard=end)
            for name, (first, end) in splits.items()
        },
        index=put_index(store, [ShardEntry(shard, 4, 20, 300, "0" * 64) for shard in shards]),
    ).put(store)  # fmt: skip


def test_splits_are_ranges_of_the_index(tmp_path: Path) -> None:
    write(Store(str(tmp_path)), [0, 1, 2, 3], {"train": (0, 3), "validation": (3, 4), "development": (4, 4)})
    sequences = Sequences.open(Store(str(tmp_path)))
    assert [[entry.shard for entry in sequences.shards(split)] for split in ("train", "validation", "development")] == [
        [0, 1, 2], [3], [],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shards", "train"), [([0, 1], (0, 3)), ([0, 1], (-1, 2)), ([0, 1], (2, 1)), ([0, 2], (0, 2)), ([1, 2], (0, 2))]
)
def test_an_index_of_other_shards_than_the_splits_is_refused(
    tmp_path: Path, shards: list[int], train: tuple[int, int]
) -> None:
    write(Store(str(tmp_path)), shards, {"train": train})
    with pytest.raises(RequestError, match="lists other shards than the manifest's splits"):
        Sequences.open(Store(str(tmp_path)))


def test_sequences_of_documents_are_made_from_their_name_only_where_the_recipe_has_one() -> None:
    assert "document_column" not in made_from_corpus(Corpus(source="texts"))
    assert made_from_corpus(Corpus(source="texts", document_column="who"))["document_column"] == "who"


def test_views_are_made_from_younger_keys_only_where_the_recipe_has_them() -> None:
    images = {"source": "images", "task": "classification", "features_column": "image", "image_shape": (2, 2)}
    own = images | {"augment": ["noise"], "views": 2}
    before = made_from_corpus(Corpus(**own))
    assert before["augment"] == ["noise"] and not {"augment_strength", "keep_original"} & set(before)
    assert made_from_corpus(Corpus(**own, augment_strength=1.0, keep_original=False)) == before
    now = made_from_corpus(Corpus(**own, augment_strength=0.5, keep_original=True))
    assert now == before | {"augment_strength": 0.5, "keep_original": True}
