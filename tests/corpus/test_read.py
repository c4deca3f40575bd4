"""Reading sources: each format, and a line for each thing that can be wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distributed_kd.corpus.read import blocks_of, digest_of, documents, list_files
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Corpus


def texts(source: Path | str, text_column: str = "text") -> list[str]:
    files = list_files(Corpus(source=str(source), text_column=text_column))
    return [text for file in files for text in documents(file, text_column)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("zwei\n")
    (tmp_path / "a.jsonl").write_text('{"text": "eins", "n": 1}\n\n{"text": "Äß"}\n')
    pq.write_table(pa.table({"text": ["drei", None], "n": [1, 2]}), tmp_path / "sub" / "c.parquet")
    (tmp_path / "notes.md").write_text("not read")
    return tmp_path


def test_a_folder_of_all_formats_is_read_in_name_order(folder: Path) -> None:
    assert texts(folder) == ["eins", "Äß", "zwei\n", "drei", ""]


def test_a_single_file_a_list_and_a_package_are_sources(folder: Path) -> None:
    assert texts(folder / "b.txt") == ["zwei\n"]
    files = list_files(Corpus(source=[str(folder / "b.txt"), str(folder / "a.jsonl")]))
    assert [Path(file.uri).name for file in files] == ["b.txt", "a.jsonl"]
    assert list_files(Corpus(source="package:distributed_kd", format="text"))


def test_the_digest_follows_the_bytes_and_not_the_names(folder: Path) -> None:
    before = digest_of(list_files(Corpus(source=str(folder))))
    (folder / "b.txt").rename(folder / "bb.txt")
    assert digest_of(list_files(Corpus(source=str(folder)))) == before
    (folder / "bb.txt").write_text("zwo!!\n"[:5])
    assert digest_of(list_files(Corpus(source=str(folder)))) != before


def test_blocks_are_runs_of_whole_files(folder: Path) -> None:
    files = list_files(Corpus(source=str(folder)))
    assert [len(block) for block in blocks_of(files, 1)] == [1, 1, 1]
    assert blocks_of(files, 1 << 20) == [files]


def bad(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.txt", b"abc\xffdef", r"x\.txt is not UTF-8: byte 3"),
        ("x.jsonl", b'{"text": "ok"}\n{"text": "\xe4"}\n', r"x\.jsonl is not UTF-8: byte 25"),
        ("x.jsonl", b'{"text": "ok"}\nnonsense\n', r"x\.jsonl line 2 is not JSON"),
        ("x.jsonl", b'{"body": "ok", "id": 1}\n', r"x\.jsonl line 1 has no column 'text' \(it has: body, id\)"),
        ("x.jsonl", b'{"text": 3}\n', r"line 1: column 'text' is int, not a text"),
        ("x.jsonl", b"[1]\n", r"has no column 'text'"),
        ("x.parquet", b"nonsense", r"x\.parquet is not Parquet"),
        ("x.txt", b"", r"no text in it"),
        ("x.doc", b"words", r"no text in it"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    bad(tmp_path, name, data)
    with pytest.raises(RequestError, match=said) as caught:
        texts(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_parquet_column_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(RequestError, match=r"has no column 'text' \(it has: body, n\)"):
        texts(tmp_path)
    with pytest.raises(RequestError, match="column 'n' is int64, not a text"):
        texts(tmp_path, "n")


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing is there"):
        texts(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="the package no_such_package is not installed"):
        texts("package:no_such_package/data")


def test_a_package_path_cannot_leave_the_package() -> None:
    with pytest.raises(RequestError, match="leads out of the package"):
        texts("package:distributed_kd/../../secret")


def test_jsonl_lines_keep_their_unicode(tmp_path: Path) -> None:
    bad(tmp_path, "x.jsonl", (json.dumps({"text": "日本\u2028語"}, ensure_ascii=False) + "\n").encode())
    assert texts(tmp_path) == ["日本\u2028語"]
