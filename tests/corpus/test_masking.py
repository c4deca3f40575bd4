"""Which tokens are masked: a share of those that can be, by what BERT puts in their place, and always the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_kd.corpus.masking import Masking, views_of
from distributed_kd.corpus.sequences import Sequence, rows_to_sequences, sequences_to_columns
from distributed_kd.errors import RequestError
from distributed_kd.models.tokenizer import load_tokenizer
from distributed_kd.recipe import Corpus, parse
from tests import toys

MASKING = Masking(before=2, after=3, mask=4, special=(0, 1, 2, 3, 4), vocabulary=1000)
CORPUS = Corpus(source="x", task="masked_lm", sequence_length=64)


def window(ids: Any, runs: list[int] | None = None) -> Sequence:
    """As `packing.pack` makes it."""
    ids = np.asarray(ids, np.int32)
    lengths = np.array(runs or [len(ids)], np.int32)
    documents = np.arange(len(lengths), dtype=np.int64) + 7
    return Sequence(-1, ids, np.append(np.ones(len(ids) - 1, bool), False), documents, lengths, isolated=False)


@given(
    ids=st.lists(st.integers(0, 999), min_size=1, max_size=80),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
    views=st.integers(1, 3),
)
def test_labels_are_what_was_there_and_the_rest_is_untouched(
    ids: list[int], share: float, seed: int, views: int
) -> None:
    corpus = CORPUS.model_copy(update={"mask_fraction": share, "seed": seed})
    framed = np.array([2, *ids, *([] if ids[-1] == 3 else [3])])
    candidates = ~np.isin(framed, MASKING.special)
    found = views_of(window(ids), MASKING, corpus, views)
    assert len(found) == (views if candidates.any() else 0)
    for view in found:
        assert view.positions == max(1, round(share * candidates.sum()))
        assert not (view.loss_mask & ~candidates).any()
        np.testing.assert_array_equal(view.labels[view.loss_mask], framed[view.loss_mask])
        assert (view.labels[~view.loss_mask] == -100).all()
        np.testing.assert_array_equal(view.input_ids[~view.loss_mask], framed[~view.loss_mask])
        assert view.document_lengths.sum() == len(framed)
    again = views_of(window(ids), MASKING, corpus, views)
    assert [one.input_ids.tolist() for one in again] == [one.input_ids.tolist() for one in found]


def test_of_what_is_chosen_eight_tenths_are_masked_one_is_any_token_and_one_stays() -> None:
    masked = random = kept = 0
    for number in range(200):
        ids = np.random.default_rng(number).integers(5, 1000, 100)
        for view in views_of(window(ids), MASKING, CORPUS, 2):
            now, before = view.input_ids[view.loss_mask], view.given_labels
            masked += (now == 4).sum()
            kept += (now == before).sum()
            random += ((now != 4) & (now != before)).sum()
    total = masked + random + kept
    assert total == 200 * 2 * 15
    assert abs(masked / total - 0.8) < 0.02 and abs(random / total - 0.1) < 0.015 and abs(kept / total - 0.1) < 0.015


def test_every_token_is_chosen_as_often_as_any_other() -> None:
    places = np.zeros(42)
    for number in range(2000):
        (view,) = views_of(window(np.random.default_rng(number).integers(5, 1000, 40)), MASKING, CORPUS, 1)
        places += view.loss_mask
    assert places[0] == places[-1] == 0  # what begins and ends it
    assert abs(places[1:-1] / 2000 - 0.15).max() < 0.035  # four standard deviations


def test_views_seeds_and_texts_are_masked_differently() -> None:
    ids = np.arange(100, 160)
    masks = [view.loss_mask.tolist() for view in views_of(window(ids), MASKING, CORPUS, 4)]
    masks += [views_of(window(ids), MASKING, CORPUS.model_copy(update={"seed": 1}), 1)[0].loss_mask.tolist()]
    masks += [views_of(window(ids + 1), MASKING, CORPUS, 1)[0].loss_mask.tolist()]
    assert len({tuple(mask) for mask in masks}) == 6


def test_documents_stay_where_they_are_in_the_frame() -> None:
    (view,) = views_of(window(range(10, 22), [5, 7]), MASKING, CORPUS.model_copy(update={"mask_fraction": 0.99}), 1)
    assert view.document_lengths.tolist() == [6, 8]
    np.testing.assert_array_equal(view.position_documents, [7] * 5 + [8] * 7)


def test_columns_and_back_and_labels_that_are_too_many() -> None:
    import pyarrow as pa

    rows = [view for end in (20, 30) for view in views_of(window(range(10, end)), MASKING, CORPUS, 2)]
    table = pa.table(sequences_to_columns(rows))
    for one, other in zip(rows, rows_to_sequences(table, isolated=False), strict=True):
        np.testing.assert_array_equal(one.given_labels, other.given_labels)
        np.testing.assert_array_equal(one.labels, other.labels)
    labels = pa.array([[1] * 9] * len(rows), pa.list_(pa.int32()))
    with pytest.raises(ValueError, match="more labels than scored positions"):
        rows_to_sequences(table.set_column(table.column_names.index("labels"), "labels", labels), isolated=False)


def test_a_tokenizer_without_a_mask_is_refused(toy_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"x has no cls and no sep and no mask token, which corpus\.task: masked_lm"):
        Masking.of(load_tokenizer(toy_teacher), "x")
    toys.save_masked_tokenizer(tmp_path)
    found = Masking.of(load_tokenizer(tmp_path), "x")
    assert (found.before, found.after, found.mask, found.vocabulary) == (2, 3, 4, len(toys.WORDS) + 5)


def test_isolated_documents_are_refused(toy_recipe: dict[str, Any]) -> None:
    toy_recipe["corpus"] |= {"task": "masked_lm", "packing": "isolate"}
    with pytest.raises(RequestError, match="packing isolate is for causal_lm and chat"):
        parse(toy_recipe)
