"""Packing: what is in a sequence, which positions carry loss, and what depends on what."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_kd.corpus.batch import by_tokens, collate
from distributed_kd.corpus.packing import Extent, Part, Windows, document_id, pack, spanned, spans, split_of
from distributed_kd.corpus.sequences import SCHEMA, Sequence, rows_to_sequences, sequences_to_columns
from distributed_kd.recipe import Corpus


def corpus(**changes: Any) -> Corpus:
    return Corpus(**({"source": "x", "sequence_length": 4} | changes))


def part(document: int, ids: np.ndarray, said: list[bool] | None = None) -> Part:
    return Part(document, ids, np.ones(len(ids), bool) if said is None else np.array(said))


def parts(*lengths: int) -> list[Part]:
    """Documents 1, 2, ... whose ids are 100 * document + place."""
    return [part(number, 100 * number + np.arange(length)) for number, length in enumerate(lengths, start=1)]


def ids(sequences: list[Sequence]) -> list[list[int]]:
    return [sequence.input_ids.tolist() for sequence in sequences]


def test_concatenate_fills_sequences_across_documents() -> None:
    packed = list(pack(parts(3, 6), corpus(packing="concatenate")))
    assert ids(packed) == [[100, 101, 102, 200], [201, 202, 203, 204]]  # a lone last id predicts nothing
    assert packed[0].loss_mask.tolist() == [True, True, True, False]
    assert packed[0].labels.tolist() == [101, 102, 200, -100]
    assert packed[0].position_ids.tolist() == [0, 1, 2, 3]


def test_isolated_documents_do_not_predict_each_other() -> None:
    packed = list(pack(parts(3, 6), corpus(packing="isolate")))
    assert ids(packed)[0] == [100, 101, 102, 200]
    assert packed[0].loss_mask.tolist() == [True, True, False, False]
    assert packed[0].position_ids.tolist() == [0, 1, 2, 0]
    assert packed[0].position_documents.tolist() == [1, 1]


def test_none_cuts_each_document_alone() -> None:
    packed = list(pack(parts(6, 1, 3), corpus(packing="none")))
    assert ids(packed) == [[100, 101, 102, 103], [104, 105], [300, 301, 302]]
    assert [sequence.loss_mask.tolist() for sequence in packed[1:]] == [[True, False], [True, True, False]]


def windows(document: int, ids: np.ndarray, settings: Corpus, stretch: int = 1000) -> list[list[int]]:
    assert settings.sequences_per_document is not None
    drawn = Windows(document, settings, settings.sequences_per_document)
    for start in range(0, len(ids), stretch):
        drawn.add(part(document, ids[start : start + stretch]))
    return [window.ids.tolist() for window in drawn.parts()]


def test_windows_are_drawn_by_the_document_alone() -> None:
    wanted = corpus(packing="none", sequences_per_document=1)
    document = np.arange(41)
    (drawn,) = windows(7, document, wanted)
    assert len(drawn) == 4
    assert windows(7, document, wanted) == [drawn]
    starts = {windows(number, document, wanted)[0][0] for number in range(200)}
    assert starts == set(range(0, 40, 4))
    assert windows(7, np.arange(3), wanted) == [[0, 1, 2]]


@pytest.mark.parametrize("stretch", [1, 3, 4, 5, 40])
def test_windows_of_a_text_in_stretches_are_those_of_the_whole(stretch: int) -> None:
    wanted = corpus(sequences_per_document=3)
    for document in range(50):
        assert windows(document, np.arange(41), wanted, stretch) == windows(document, np.arange(41), wanted)


def test_a_document_is_in_one_split_in_its_share() -> None:
    wanted = corpus(validation_fraction=0.2, development_fraction=0.1, train_fraction=0.5)
    drawn = [split_of(document_id(f"text {number}"), wanted) for number in range(4000)]
    shares = {split: drawn.count(split) / len(drawn) for split in ("validation", "development", "train", None)}
    assert shares == pytest.approx({"validation": 0.2, "development": 0.1, "train": 0.5, None: 0.2}, abs=0.03)
    assert split_of(document_id("text 1"), wanted) == drawn[1]


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.integers(2, 7),
    st.sampled_from(["concatenate", "isolate", "none"]),
)
def test_no_id_is_lost_or_doubled_and_rows_survive_the_table(lengths: list[int], length: int, packing: str) -> None:
    wanted = corpus(sequence_length=length, packing=packing)
    packed = list(pack(parts(*lengths), wanted))
    flat = [id_ for sequence in ids(packed) for id_ in sequence]
    everything = [int(id_) for document in parts(*lengths) for id_ in document.ids]
    unscored = [id_ for id_ in everything if id_ not in set(flat)]
    assert flat == [id_ for id_ in everything if id_ not in set(unscored)]
    # Only a sequence without any position that carries loss may go.
    assert packing == "isolate" or len(unscored) <= len(lengths)
    for sequence in packed:
        assert 2 <= len(sequence.input_ids) <= length
        assert sequence.document_lengths.sum() == len(sequence.input_ids)
        assert (sequence.labels[sequence.loss_mask] == sequence.input_ids[1:][sequence.loss_mask[:-1]]).all()

    import pyarrow as pa

    table = pa.table(sequences_to_columns(packed), schema=SCHEMA)
    for sequence, again in zip(packed, rows_to_sequences(table, packing == "isolate"), strict=True):
        for field in ("input_ids", "loss_mask", "documents", "document_lengths", "position_ids", "labels"):
            np.testing.assert_array_equal(getattr(sequence, field), getattr(again, field))


def test_a_position_carries_loss_where_the_next_id_is_said() -> None:
    said = [False, False, True, True, False, True]
    conversation = part(1, np.arange(6), said)
    (packed,) = pack([conversation], corpus(sequence_length=8))
    assert packed.loss_mask.tolist() == [False, True, True, False, True, False]
    assert packed.labels.tolist() == [-100, 2, 3, -100, 5, -100]
    # A window in which nothing is said is no sequence, wherever another conversation begins.
    packed_two = list(pack([part(1, np.arange(5), [False] * 5), conversation], corpus(sequence_length=4)))
    assert ids(packed_two) == [[4, 0, 1, 2], [3, 4, 5]]
    assert [sequence.loss_mask.tolist() for sequence in packed_two] == [
        [False, False, True, False],
        [False, True, False],
    ]
    isolated = list(pack([conversation, conversation], corpus(sequence_length=12, packing="isolate")))
    assert isolated[0].loss_mask.tolist() == 2 * [False, True, True, False, True, False]


@given(st.data(), st.integers(2, 7), st.sampled_from(["concatenate", "isolate", "none"]))
def test_files_packed_alone_are_the_stream_packed_whole(data: st.DataObject, length: int, packing: str) -> None:
    """However a stream is cut into files, through documents or between them, the sequences are the same."""
    wanted = corpus(sequence_length=length, packing=packing)
    flags = st.lists(st.booleans(), min_size=1, max_size=15)
    whole = [
        part(number, 100 * number + np.arange(len(said)), said)
        for number, said in enumerate(data.draw(st.lists(flags, min_size=1, max_size=6)), start=1)
    ]
    files: list[list[Part]] = [[]]
    for document in whole:
        rest = document
        while len(rest):
            taken = data.draw(st.integers(1, len(rest)))
            files[-1].append(Part(document.document, rest.ids[:taken], rest.said[:taken], begins=rest is document))
            rest = rest[taken:]
            for _ in range(data.draw(st.integers(0, 2))):
                files.append([])
    found = spans([Extent.of(file) for file in files], wanted)
    alone = [
        sequence
        for place, file in enumerate(files)
        for sequence in pack(spanned(file, chain.from_iterable(files[place + 1 :]), found[place], wanted), wanted)
    ]
    for one, other in zip(pack(whole, wanted), alone, strict=True):
        for field in ("input_ids", "loss_mask", "documents", "document_lengths"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_padding_counts_on_and_carries_no_loss() -> None:
    rows = list(pack(parts(4, 2), corpus(packing="none")))
    batch = collate(rows)
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert batch.loss_mask.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert batch.labels[1].tolist() == [201, -100, -100, -100]


def test_batches_are_runs_of_at_most_so_many_padded_ids() -> None:
    rows = list(pack(parts(4, 4, 2, 4, 2, 2), corpus(packing="none")))
    groups = by_tokens(rows, 8)
    assert [len(group) for group in groups] == [2, 2, 2]
    assert [row for group in groups for row in group] == rows
    assert [len(group) for group in by_tokens(rows, 1)] == [1] * 6
