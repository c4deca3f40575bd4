"""A built-in source is made on every host that reads it, not on the driver's alone."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from distributed_kd.corpus import prepare
from distributed_kd.corpus.cut import survey
from distributed_kd.corpus.labelled import Inputs
from distributed_kd.corpus.source import list_files
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Corpus
from distributed_kd.store.filesystem import Store

DIGITS = Corpus(source="builtin:digits", task="classification", features_column="image", document_column="document")


def test_an_unknown_one_is_refused_with_those_there_are() -> None:
    with pytest.raises(RequestError, match=r"builtin:digit: there is no such source; those there are: digits, "):
        list_files(DIGITS.model_copy(update={"source": "builtin:digit"}))


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
def test_a_task_on_a_host_that_has_not_got_it_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DKD_CACHE", str(tmp_path / "home"))
    files = list_files(DIGITS)
    pieces = [piece for own in survey(files, DIGITS) for piece in own.pieces]
    shutil.rmtree(tmp_path / "home")  # as on another host
    packed, documents = prepare._write_labelled(
        pieces, Inputs(classes=10, width=64), ("", None), DIGITS, Store(str(tmp_path)), "one.packed.arrow"
    )
    assert sum(packed.sequences.values()) == sum(map(len, documents.values())) == 1797
