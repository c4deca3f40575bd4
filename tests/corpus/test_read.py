"""Reading sources: each format, and a line for each thing that can be wrong with a file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from distributed_kd.corpus.bytes_of import stretches
from distributed_kd.corpus.cut import Piece, digest_of, runs_of, survey
from distributed_kd.corpus.packing import document_id
from distributed_kd.corpus.read import Document, documents
from distributed_kd.corpus.source import list_files
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Corpus


def read(source: Path | str, **keys: Any) -> list[Document]:
    corpus = Corpus(source=str(source), **keys)
    surveys = survey(list_files(corpus), corpus)
    return [document for found in surveys for piece in found.pieces for document in documents(piece, corpus)]


def texts(source: Path | str, text_column: str = "text", **keys: Any) -> list[Any]:
    return [document.content for document in read(source, text_column=text_column, **keys)]


def digest(source: Path | str) -> dict[str, Any]:
    corpus = Corpus(source=str(source))
    files = list_files(corpus)
    return digest_of(files, survey(files, corpus))


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


def test_rows_named_alike_are_one_document_and_text_files_are_their_own(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "eins", "n": 1}\n{"text": "zwei", "n": 2}\n')
    found = read(folder, document_column="n")
    assert [document.content for document in found] == ["eins", "zwei", "zwei\n", "drei", ""]
    assert [document.id for document in found] == [document_id(name) for name in ("1", "2", "zwei\n", "1", "2")]
    (folder / "a.jsonl").write_text('{"text": "eins", "n": 1.5}\n')
    with pytest.raises(RequestError, match=r"line 1: its document is 1\.5; corpus\.document_column needs a text"):
        read(folder, document_column="n")


def test_a_single_file_a_list_and_a_package_are_sources(folder: Path) -> None:
    assert texts(folder / "b.txt") == ["zwei\n"]
    files = list_files(Corpus(source=[str(folder / "b.txt"), str(folder / "a.jsonl")]))
    assert [Path(file.uri).name for file in files] == ["b.txt", "a.jsonl"]
    assert list_files(Corpus(source="package:distributed_kd", format="text"))


def test_the_digest_follows_the_bytes_and_not_the_names(folder: Path) -> None:
    before = digest(folder)
    (folder / "b.txt").rename(folder / "bb.txt")
    assert digest(folder) == before
    (folder / "bb.txt").write_text("zwo!!\n"[:5])
    assert digest(folder) != before


def bad(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.txt", b"abc\xffdef", r"x\.txt is not UTF-8: byte 3"),
        ("x.jsonl", b'{"text": "ok"}\n{"text": "\xe4"}\n', r"x\.jsonl line 2 is not UTF-8: byte 10 of the line"),
        ("x.jsonl", b'{"text": "ok"}\nnonsense\n', r"x\.jsonl line 2 is not JSON"),
        ("x.jsonl", b'{"body": "ok", "id": 1}\n', r"x\.jsonl line 1 has no column 'text' \(it has: body, id\)"),
        ("x.jsonl", b'{"text": 3}\n', r"line 1: column 'text' is int, not a text"),
        ("x.jsonl", b"[1]\n", r"has no column 'text'"),
        ("x.jsonl", b'{"text": "\\ud800"}\n', r"x\.jsonl line 1 holds half a surrogate pair"),
        ("x.jsonl", b'{"text": "ok", "n": ' + b"9" * 5000 + b"}\n", r"x\.jsonl line 1 is no JSON that this reads"),
        ("x.jsonl", b"[" * 100_000, r"x\.jsonl line 1 is no JSON that this reads"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "ok"}\nnonsense\n', mtime=0), r"x\.jsonl\.gz line 2 is not JSON"),
        ("x.jsonl.zst", zstandard.compress(b'{"text": "ok"}\n\xff\n'), r"x\.jsonl\.zst line 2 is not UTF-8"),
        ("x.jsonl.zst", zstandard.compress(b'\n{"body": 1}\n'), r"x\.jsonl\.zst line 2 has no column 'text'"),
        ("x.txt.gz", gzip.compress(b"abc\xffdef", mtime=0), r"x\.txt\.gz is not UTF-8: byte 3"),
        ("x.jsonl.gz", b'{"text": "ok"}\n', r"x\.jsonl\.gz after line 0: what follows is no gzip"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "ok"}\n' * 9, mtime=0)[:-5], r"after line \d: .*Truncated"),
        ("x.jsonl.zst", zstandard.compress(b'{"text": "ok"}\n' * 9)[:-5], r"after line \d: .*Truncated"),
        ("x.txt.zst", zstandard.compress(b"words " * 99)[:-1], r"x\.txt\.zst after byte 0 of its text: .*Truncated"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0) + b"more", r"after line \d: what follows is no gzip"),
        ("x.parquet.gz", b"whatever", r"x\.parquet\.gz: Parquet compresses what it holds itself"),
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


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_compressed_files_hold_the_same_documents(folder: Path, ending: str, compress: Any) -> None:
    before = read(folder)
    for name in ("a.jsonl", "b.txt"):
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        # Two members, as `cat a.gz b.gz` makes them.
        (folder / f"{name}{ending}").write_bytes(compress(data[:7]) + compress(data[7:]))
    again = read(folder)
    assert [(document.id, document.content) for document in again] == [
        (document.id, document.content) for document in before
    ]
    assert again[1].place == f"file://{folder}/a.jsonl{ending} line 3"


def test_a_compressed_source_that_changes_is_another_one_under_the_same_name(tmp_path: Path) -> None:
    bad(tmp_path, "x.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0))
    before = digest(tmp_path)
    bad(tmp_path, "x.jsonl.gz", gzip.compress(b'{"text": "b"}\n', mtime=0))
    assert digest(tmp_path) != before
    bad(tmp_path, "x.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0))
    assert digest(tmp_path) == before


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.txt.gz", "x.jsonl.zst"])
def test_an_empty_file_holds_no_documents(tmp_path: Path, name: str) -> None:
    bad(tmp_path, name, b"")
    bad(tmp_path, "y.txt", b"words")
    assert texts(tmp_path) == ["words"]
    bad(tmp_path, name, gzip.compress(b"") if name.endswith(".gz") else b"")
    assert texts(tmp_path) == ["words"]


def test_a_parquet_file_without_rows_holds_no_documents(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "x.parquet")
    assert texts(tmp_path) == []


def test_a_parquet_file_that_is_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": [f"text {number}" for number in range(3000)]}), path, row_group_size=2000)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(RequestError, match=r"x\.parquet is damaged after row \d+"):
        texts(path)


def test_a_format_is_forced_on_files_of_other_endings(tmp_path: Path) -> None:
    bad(tmp_path, "lines.gz", gzip.compress(b'{"text": "a"}\n'))
    bad(tmp_path, "x.txt", b"not read")
    assert texts(tmp_path, format="jsonl") == ["a"]


def test_a_text_is_no_conversation(tmp_path: Path) -> None:
    bad(tmp_path, "x.txt", b"words")
    with pytest.raises(RequestError, match=r"x\.txt: a text is no conversation"):
        read(tmp_path, task="chat")


# A file cut for several readers.


def test_runs_are_of_whole_items(folder: Path) -> None:
    files = list_files(Corpus(source=str(folder)))
    assert [len(run) for run in runs_of(files, 1)] == [1, 1, 1]
    assert runs_of(files, 1 << 20) == [files]


def pieces_of(path: Path, block_bytes: int, **keys: Any) -> tuple[Corpus, list[Piece]]:
    corpus = Corpus(source=str(path), block_bytes=block_bytes, **keys)
    (found,) = survey(list_files(corpus), corpus)
    return corpus, found.pieces


@pytest.mark.parametrize("block_bytes", [1, 2, 40, 100, 999, 1000, 1001])
@pytest.mark.parametrize("end", [b"\n", b"", b"\n\n"])
def test_lines_are_cut_into_ranges_that_hold_each_once(tmp_path: Path, block_bytes: int, end: bytes) -> None:
    lines = [json.dumps({"text": "é" * (number % 7) + str(number)}) for number in range(50)]
    lines[7] = ""
    path = bad(tmp_path, "x.jsonl", "\n".join(lines).encode() + end)
    whole = read(path)
    assert len(whole) == 49
    corpus, pieces = pieces_of(path, block_bytes)
    assert (len(pieces) > 1) == (block_bytes < path.stat().st_size)
    assert all(piece.bytes >= block_bytes for piece in pieces[:-1])
    assert [document for piece in pieces for document in documents(piece, corpus)] == whole


def test_the_line_of_an_error_counts_from_the_beginning_of_the_file(tmp_path: Path) -> None:
    path = bad(tmp_path, "x.jsonl", b'{"text": "a"}\n' * 30 + b"nonsense\n" + b'{"text": "a"}\n' * 30)
    corpus, pieces = pieces_of(path, 100)
    with pytest.raises(RequestError, match=r"x\.jsonl line 31 is not JSON"):
        [list(documents(piece, corpus)) for piece in pieces[1:]]


def test_parquet_is_cut_at_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": [f"text {number}" for number in range(100)]}), path, row_group_size=7)
    whole = read(path)
    corpus, pieces = pieces_of(path, 1)
    assert len(pieces) == 15
    assert [document for piece in pieces for document in documents(piece, corpus)] == whole
    assert whole[-1].place.endswith("x.parquet row 100")
    corpus, pieces = pieces_of(path, 500)
    assert 1 < len(pieces) < 15
    assert [document for piece in pieces for document in documents(piece, corpus)] == whole


def test_a_long_text_is_one_document_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"line {number} ä\n" for number in range(2000)) + "日" * 3000 + "\nend"
    monkeypatch.setattr("distributed_kd.corpus.cut.STRETCH_BYTES", 1000)
    monkeypatch.setattr(stretches, "__defaults__", (1000,))
    path = bad(tmp_path, "x.txt", text.encode())
    corpus, pieces = pieces_of(path, 3000)
    assert len(pieces) > 5
    read_in_pieces = [document for piece in pieces for document in documents(piece, corpus)]
    assert "".join(str(document.content) for document in read_in_pieces) == text
    assert {document.id for document in read_in_pieces} == {document_id(text)}
    assert [document.begins for document in read_in_pieces] == [True] + [False] * (len(read_in_pieces) - 1)
    assert [document.ends for document in read_in_pieces] == [False] * (len(read_in_pieces) - 1) + [True]
    for block_bytes, keys in ((1 << 30, {}), (1, {}), (3000, {"sequences_per_document": 2})):
        corpus, pieces = pieces_of(path, block_bytes, **keys)
        assert [document for piece in pieces for document in documents(piece, corpus)] == read_in_pieces
    assert len(pieces) == 1, "windows are drawn among those of the whole text"

    packed = bad(tmp_path, "x.txt.gz", gzip.compress(text.encode()))
    corpus, pieces = pieces_of(packed, 3000)
    assert [
        (document.id, document.content, document.begins, document.ends)
        for piece in pieces
        for document in documents(piece, corpus)
    ] == [(document.id, document.content, document.begins, document.ends) for document in read_in_pieces]


# What datasets' save_to_disk writes.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """2,500 rows in two Arrow files of batches of 1,000 at most, as `datasets` writes them."""
    rows = {"text": [f"text {number}" for number in range(2500)], "n": list(range(2500))}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved", num_shards=2)
    return tmp_path / "saved"


def test_a_saved_dataset_is_read_from_the_files_that_it_lists(saved: Path) -> None:
    wanted = [f"text {number}" for number in range(2500)]
    for block_bytes in (1, 30_000, 1 << 30):
        for keys in ({}, {"format": "datasets"}):
            found = read(saved, block_bytes=block_bytes, **keys)
            assert [document.content for document in found] == wanted
            assert found[-1].place.endswith("data-00001-of-00002.arrow row 1250")
    (saved / "cache-0123.arrow").write_bytes(b"of a map() that is not listed")
    assert texts(saved.parent) == wanted
    corpus = Corpus(source=str(saved), block_bytes=1)
    assert [len(found.pieces) for found in survey(list_files(corpus), corpus)] == [2, 2]


def test_a_saved_dataset_that_changes_is_another_one(saved: Path) -> None:
    before = digest(saved)
    state = (saved / "state.json").read_text()
    (saved / "state.json").write_text(state.replace("_fingerprint", "_print"))
    assert digest(saved) == before
    changed = datasets.Dataset.from_dict({"text": ["other"] * 2500, "n": list(range(2500))})
    changed.save_to_disk(saved.parent / "other", num_shards=2)
    assert digest(saved.parent / "other") != before


def test_what_is_wrong_with_a_saved_dataset(saved: Path) -> None:
    with pytest.raises(RequestError, match="column 'n' is int64, not a text"):
        texts(saved, "n")
    with pytest.raises(RequestError, match=r"has no column 'body' \(it has: text, n\)"):
        texts(saved, "body")
    path = saved / "data-00001-of-00002.arrow"
    data = path.read_bytes()
    without_end = len(data) - 8
    for cut in (len(data) // 2, without_end, 3):
        path.write_bytes(data[:cut])
        for block_bytes in (1, 1 << 30):
            with pytest.raises(RequestError, match=r"00001-of-00002\.arrow is not a whole Arrow stream"):
                texts(saved, block_bytes=block_bytes)
    path.write_bytes(b"nonsense" + data[8:])
    for block_bytes in (1, 1 << 30):
        with pytest.raises(RequestError, match=r"00001-of-00002\.arrow is (not a|no) whole Arrow stream"):
            texts(saved, block_bytes=block_bytes)
    path.unlink()
    with pytest.raises(RequestError, match=r"data-00001-of-00002\.arrow, which state\.json lists, is not there"):
        texts(saved)
    (saved / "state.json").write_text("{}")
    with pytest.raises(RequestError, match=r"state\.json is not that of a saved dataset"):
        texts(saved)
