"""Rows with labels of their own to sequences: texts, images and frames; what is wrong with a row is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distributed_kd.corpus.cut import Piece
from distributed_kd.corpus.labelled import Inputs, sequences_of
from distributed_kd.corpus.sequences import Sequence, rows_to_sequences, sequences_to_columns
from distributed_kd.corpus.source import list_files
from distributed_kd.errors import RequestError
from distributed_kd.models.tokenizer import load_tokenizer
from distributed_kd.recipe import Corpus
from tests import toys

IMAGES = {"task": "classification", "features_column": "image", "image_shape": [2, 2], "validation_fraction": 0.3}
FRAMES = {"task": "frames", "features_column": "frames", "label_column": "labels", "sequence_length": 5}


def made(rows: list[dict[str, Any]], folder: Path, inputs: Inputs, **corpus: Any) -> dict[str, list[Sequence]]:
    """Of rows as lines of JSON, the same as those of Parquet where Arrow can hold them."""
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    found = _read(file, corpus, inputs)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    again = _read(folder / "rows.parquet", corpus, inputs)
    assert {split: len(own) for split, own in found.items()} == {split: len(own) for split, own in again.items()}
    return found


def _read(file: Path, corpus: dict[str, Any], inputs: Inputs) -> dict[str, list[Sequence]]:
    said = Corpus(source=str(file), **corpus)
    (one,) = list_files(said)
    return sequences_of([Piece(one, 0, 1 if one.format == "parquet" else one.bytes, 0, one.bytes)], said, inputs)


def images(count: int, seed: int = 0) -> list[dict[str, Any]]:
    drawn = np.random.default_rng(seed)
    return [{"image": drawn.random(4).tolist(), "label": number % 3} for number in range(count)]


def test_an_image_is_one_position_with_its_class(tmp_path: Path) -> None:
    rows = images(40)
    found = made(rows, tmp_path, Inputs(3, 4), **IMAGES)
    assert 3 < len(found["validation"]) < 25 and len(found["train"]) + len(found["validation"]) == 40
    known = {np.float32(row["image"]).tobytes(): row["label"] for row in rows}
    for one in found["train"] + found["validation"]:
        assert one.features is not None and one.features.shape == (1, 4) and one.positions == 1
        assert one.labels.tolist() == [known[one.features.tobytes()]]


def test_an_image_in_rows_is_the_same_as_a_flat_one(tmp_path: Path) -> None:
    rows = images(10)
    flat = made(rows, tmp_path, Inputs(3, 4), **IMAGES)
    nested = [{**row, "image": [row["image"][:2], row["image"][2:]]} for row in rows]
    for one, other in zip(flat["train"], made(nested, tmp_path, Inputs(3, 4), **IMAGES)["train"], strict=True):
        np.testing.assert_array_equal(one.features, other.features)
        assert one.documents == other.documents


def test_views_are_of_training_images_alone_and_each_is_another(tmp_path: Path) -> None:
    plain = made(images(30), tmp_path, Inputs(3, 4), **IMAGES)
    viewed = made(images(30), tmp_path, Inputs(3, 4), **IMAGES, views=3, augment=["noise", "mixup"])
    assert len(viewed["train"]) == 3 * len(plain["train"])
    assert len(viewed["validation"]) == len(plain["validation"])
    groups = [viewed["train"][begin : begin + 3] for begin in range(0, len(viewed["train"]), 3)]
    for own, views in zip(plain["train"], groups, strict=True):
        assert len({view.features.tobytes() for view in views if view.features is not None}) == 3
        assert all(view.labels.tolist() == own.labels.tolist() for view in views)


def test_the_first_view_may_be_the_image_itself_and_the_others_are_what_they_were(tmp_path: Path) -> None:
    own = IMAGES | {"views": 3, "augment": ["affine", "noise", "mixup"]}
    plain, viewed, kept = (
        made(images(30), tmp_path, Inputs(3, 4), **corpus)["train"]
        for corpus in (IMAGES, own, own | {"keep_original": True})
    )
    for number, one in enumerate(kept):
        assert one.features is not None and one.features.dtype == np.float32
        wanted = plain[number // 3] if number % 3 == 0 else viewed[number]
        np.testing.assert_array_equal(one.features, wanted.features)
        assert np.array_equal(one.features, plain[number // 3].features) == (number % 3 == 0)
        assert one.labels.tolist() == wanted.labels.tolist()


def test_strength_is_of_every_view(tmp_path: Path) -> None:
    own = IMAGES | {"views": 2, "augment": ["elastic", "noise"]}
    plain, none, half = (
        made(images(30), tmp_path, Inputs(3, 4), **corpus)["train"]
        for corpus in (IMAGES, own | {"augment_strength": 0.0}, own | {"augment_strength": 0.5})
    )
    for number, (one, other) in enumerate(zip(none, half, strict=True)):
        np.testing.assert_array_equal(one.features, plain[number // 2].features)
        assert not np.array_equal(other.features, one.features)


def test_rows_of_one_document_are_in_one_split(tmp_path: Path) -> None:
    rows = [{**row, "who": number // 4} for number, row in enumerate(images(80))]
    found = made(rows, tmp_path, Inputs(3, 4), **IMAGES, document_column="who")
    documents = {split: {int(one.documents[0]) for one in own} for split, own in found.items()}
    assert not documents["train"] & documents["validation"]
    assert len(documents["train"]) + len(documents["validation"]) == 20


def test_of_stored_views_training_takes_the_first_few_and_the_rest_the_original(tmp_path: Path) -> None:
    rows = [
        {"frames": [[float(view)]], "labels": [number % 3], "said": number, "view": view}
        for view in range(3)
        for number in range(40)
    ]
    columns = {"document_column": "said", "view_column": "view", "validation_fraction": 0.3}

    def views(found: list[Sequence]) -> list[float]:
        return [float(one.features[0, 0]) for one in found if one.features is not None]

    for count in (1, 2, 5):
        found = made(rows, tmp_path, Inputs(3, 1), **FRAMES, **columns, views=count)
        held_out, trained = len(found["validation"]), views(found["train"])
        assert views(found["validation"]) == [0.0] * held_out and 3 < held_out < 25
        assert trained == [float(view) for view in range(min(count, 3)) for _ in range(40 - held_out)]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(rows[0] | {"view": -1}))
    with pytest.raises(RequestError, match=r"line 1: its view is -1; corpus\.view_column needs a whole number from 0"):
        _read(file, FRAMES | columns | {"validation_fraction": 0.0}, Inputs(3, 1))


def test_some_documents_keep_their_labels_and_without_a_teacher_the_others_are_left_out(tmp_path: Path) -> None:
    rows = images(300)
    own = IMAGES | {"labelled_fraction": 0.4, "without_classes": [1]}
    found = made(rows, tmp_path, Inputs(3, 4), **own)
    labels = np.array([one.labels[0] for one in found["train"]])
    assert set(labels.tolist()) == {-100, 0, 2} and 0.3 < (labels >= 0).mean() < 0.5
    whole = made(rows, tmp_path, Inputs(3, 4), **IMAGES | {"without_classes": [1]})
    assert [one.labels.tolist() for one in found["validation"]] == [one.labels.tolist() for one in whole["validation"]]
    assert len(found["train"]) == len(whole["train"])  # a row of a class that is left out is not there without label
    alone = made(rows, tmp_path, Inputs(3, 4, labels_alone=True), **own)
    kept = [one for one in found["train"] if one.labels[0] >= 0]
    assert [one.input_ids.tolist() for one in alone["train"]] == [one.input_ids.tolist() for one in kept]
    assert [one.labels.tolist() for one in alone["train"]] == [one.labels.tolist() for one in kept]


def test_noise_changes_its_share_of_training_labels_and_no_others(tmp_path: Path) -> None:
    rows = images(600)
    plain, noisy, all_wrong = (
        made(rows, tmp_path, Inputs(3, 4), **IMAGES, label_noise=share) for share in (0.0, 0.2, 1.0)
    )

    def changed(other: dict[str, list[Sequence]], split: str) -> float:
        pairs = zip(plain[split], other[split], strict=True)
        return float(np.mean([one.labels[0] != own.labels[0] for one, own in pairs]))

    assert 0.14 < changed(noisy, "train") < 0.26 and changed(all_wrong, "train") == 1.0
    assert changed(noisy, "validation") == changed(all_wrong, "validation") == 0.0
    assert {int(one.labels[0]) for one in all_wrong["train"]} == {0, 1, 2}


def test_a_class_is_left_out_of_training_alone(tmp_path: Path) -> None:
    found = made(images(60), tmp_path, Inputs(3, 4), **IMAGES, without_classes=[1])
    assert {int(one.labels[0]) for one in found["train"]} == {0, 2}
    assert {int(one.labels[0]) for one in found["validation"]} == {0, 1, 2}


def test_frames_are_cut_into_sequences_with_a_label_each(tmp_path: Path) -> None:
    drawn = np.random.default_rng(1)
    rows = [
        {
            "frames": drawn.random((length, 3)).tolist(),
            "labels": [n % 7 for n in range(length)],
            "said": f"text {length}",
        }
        for length in (1, 5, 12)
    ]
    found = made(rows, tmp_path, Inputs(7, 3), **FRAMES, document_column="said", validation_fraction=0.0)["train"]
    assert [len(one.input_ids) for one in found] == [1, 5, 5, 5, 2]
    whole = [one.features for one in found if one.features is not None]
    np.testing.assert_array_equal(np.concatenate(whole), np.concatenate([np.float32(row["frames"]) for row in rows]))
    assert np.concatenate([one.labels for one in found]).tolist() == [n % 7 for row in rows for n in row["labels"]]
    assert found[2].documents == found[4].documents and all(one.loss_mask.all() for one in found)


def test_a_frame_may_have_no_label(tmp_path: Path) -> None:
    rows = [{"frames": [[0.0], [1.0], [2.0]], "labels": [-100, 2, None]}]
    (one,) = made(rows, tmp_path, Inputs(3, 1), **FRAMES, validation_fraction=0.0)["train"]
    assert one.labels.tolist() == [-100, 2, -100] and one.loss_mask.all()


def test_held_out_what_has_no_label_is_not_scored(tmp_path: Path) -> None:
    rows = [{"frames": [[0.0], [1.0]], "labels": [-100, number % 3], "said": number} for number in range(20)]
    rows += [{"frames": [[0.0], [1.0]], "labels": [-100, -100], "said": number} for number in range(20, 40)]
    found = made(rows, tmp_path, Inputs(3, 1), **FRAMES, document_column="said", validation_fraction=0.5)
    assert 3 < len(found["validation"]) < 17 and len(found["train"]) > 10
    assert all(one.loss_mask.tolist() == [False, True] and one.positions == 1 for one in found["validation"])
    assert all(one.loss_mask.all() for one in found["train"])


def test_a_text_is_its_tokens_and_its_class_stands_at_the_first(tmp_path: Path) -> None:
    toys.save_masked_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    rows = [{"text": "w1 w2 w3", "label": 1}, {"text": "w4 " * 20, "label": 0}]
    said = {"task": "classification", "sequence_length": 8, "validation_fraction": 0.0}
    found = made(rows, tmp_path, Inputs(2, None, tokenizer), **said)["train"]
    assert [len(one.input_ids) for one in found] == [len(tokenizer("w1 w2 w3").input_ids), 8]
    assert [one.labels.tolist()[0] for one in found] == [1, 0]
    assert [one.positions for one in found] == [1, 1] and all(one.features is None for one in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": [1.0, 2.0, 3.0]}, "line 3: its features are 1 x 3, and the model takes 4 numbers a position"),
        ({"image": [[1.0, 2.0, 3.0, 4.0]]}, "line 3: an image of 1 x 4 is not of corpus.image_shape 2 x 2"),
        ({"image": [1.0, 2.0, "x", 3.0]}, "line 3: column 'image' is no array of numbers"),
        ({"image": [1.0, 2.0, None, 3.0]}, "line 3: one of its features is not a finite number"),
        ({"label": 3}, "line 3: the label is 3, and the model has classes 0 to 2"),
        ({"label": "cat"}, "line 3: the label is 'cat', and the model has classes 0 to 2"),
        ({"label": [1, 2]}, "line 3: 2 labels for 1 classification; each needs one"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    rows = images(5)
    rows[2] |= change
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(RequestError) as caught:
        _read(file, IMAGES, Inputs(3, 4))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_text_and_what_has_no_columns_is_named(tmp_path: Path) -> None:
    toys.save_masked_tokenizer(tmp_path)
    texts = {"task": "classification"}
    inputs = Inputs(2, None, load_tokenizer(tmp_path))
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "w1 \\ud800", "label": 1}')
    with pytest.raises(RequestError, match="line 1 holds half a surrogate pair"):
        _read(file, texts, inputs)
    plain = tmp_path / "plain.txt"
    plain.write_text("w1 w2")
    with pytest.raises(RequestError, match=r"plain.txt is a text without columns, and corpus\.text_column is as"):
        _read(plain, texts, inputs)


def test_a_frame_too_few_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"frames": [[0.0], [1.0]], "labels": [1]}))
    with pytest.raises(RequestError, match=r"line 1: 1 labels for 2 frames; each needs one"):
        _read(file, FRAMES, Inputs(3, 1))
    file.write_text(json.dumps({"frames": [[0.0], [1.0]], "labels": [1, 9]}))
    with pytest.raises(RequestError, match=r"frame 1 of .*line 1: the label is 9, and the model has classes 0 to 2"):
        _read(file, FRAMES, Inputs(3, 1))


def test_a_column_of_another_kind_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a"], "label": [1]}), tmp_path / "rows.parquet")
    with pytest.raises(RequestError, match="column 'image' is string, not a list of numbers, or of lists of them"):
        _read(tmp_path / "rows.parquet", IMAGES, Inputs(3, 4))


def test_features_survive_the_way_to_a_shard_and_back() -> None:
    drawn = np.random.default_rng(2)
    sequences = [
        Sequence(
            number, np.zeros(length, np.int32), np.ones(length, bool), np.array([number]),
            np.array([length], np.int32), False, np.arange(length, dtype=np.int32),
            drawn.random((length, 3), np.float32),
        )
        for number, length in enumerate((2, 1, 4))
    ]  # fmt: skip
    table = pa.table(sequences_to_columns(sequences))
    for one, other in zip(sequences, rows_to_sequences(table, False), strict=True):
        np.testing.assert_array_equal(one.features, other.features)
        assert other.labels.tolist() == one.labels.tolist()
    sliced = rows_to_sequences(table.take(pa.array([2, 0])), False)
    np.testing.assert_array_equal(sliced[0].features, sequences[2].features)
    short = table.set_column(
        table.column_names.index("features"),
        "features",
        pa.array([[1.0] * 6, [1.0] * 2, [1.0] * 12], pa.list_(pa.float32())),
    )
    with pytest.raises(ValueError, match="features are not of one width"):
        rows_to_sequences(short, False)
