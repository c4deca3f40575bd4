"""The line over an S3 bucket: moto's server on loopback, the ordinary client, credentials from the environment."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.corpus.cut import survey
from distributed_kd.corpus.read import documents
from distributed_kd.corpus.source import list_files
from distributed_kd.recipe import Corpus
from distributed_kd.store.filesystem import Store
from tests.commands import dkd, said, write_recipe

pytestmark = pytest.mark.slow


def test_corpus_and_workdir_in_a_bucket(
    bucket: dict[str, str],
    toy_recipe: dict[str, Any],
    toy_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    texts = Store("s3://bucket/texts")
    for file in toy_corpus.iterdir():
        texts.put(file.name, file.read_bytes())
    toy_recipe["corpus"]["source"] = "s3://bucket/texts"
    toy_recipe["workdir"] = "s3://bucket/job"
    toy_recipe["baseline"] = "off"
    recipe = write_recipe(tmp_path, toy_recipe)
    done = dkd("run", recipe, "--json", DKD_CACHE=str(tmp_path / "cache"), **bucket)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report["models"]) == {"teacher", "student"}
    assert report["models"]["student"]["kl_from_teacher"] > 0.0

    done = dkd("inspect", "s3://bucket/job/cache", "--json", **bucket)
    assert json.loads(done.stdout) == report["cache"]
    stages = json.loads(dkd("status", "s3://bucket/job", "--json", **bucket).stdout)["stages"]
    assert {name: stages[name]["state"] for name in stages if name != "baseline"} == dict.fromkeys(
        ("prepare", "cache", "student", "evaluate"), "done"
    )
    done = dkd("run", recipe, DKD_CACHE=str(tmp_path / "cache"), **bucket)
    assert done.stderr.count("done already") == 4
    # The same shards as on a local disk, to the byte; and no credential in anything that was written.
    local = {**toy_recipe, "workdir": str(tmp_path / "job")}
    for stage in ("prepare", "cache"):
        assert dkd(stage, write_recipe(tmp_path, local), **bucket).returncode == 0
    there = Store("s3://bucket")
    for number in (0, 1):
        name = f"job/cache/shards/{number:08d}.arrow"
        assert there.read(name) == (tmp_path / name).read_bytes()
    written = there.fs.find("bucket/job")
    assert {"report.json", "manifest.json"} <= {name.rsplit("/", 1)[1] for name in written} and len(written) > 30
    assert not [name for name in written if b"test-secret" in there.fs.cat_file(name)]


def test_a_source_in_a_bucket_is_cut_and_decompressed_as_on_a_disk(
    bucket: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    lines = "".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(3000)).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "empty.jsonl").write_bytes(b"")
    saved = datasets.Dataset.from_dict({"text": [f"row {number}" for number in range(2500)]})
    saved.save_to_disk(tmp_path / "saved")
    saved.to_parquet(tmp_path / "c.parquet", batch_size=500)
    there = Store("s3://bucket/source")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            there.put(str(path.relative_to(tmp_path)), path.read_bytes())

    def read(source: str) -> tuple[list[str], list[tuple[int, int, int]], list[str | Any]]:
        corpus = Corpus(source=source, block_bytes=10_000)
        surveys = survey(list_files(corpus), corpus)
        pieces = [piece for found in surveys for piece in found.pieces]
        content = [document.content for piece in pieces for document in documents(piece, corpus)]
        return (
            [found.sha256 for found in surveys],
            [(piece.begin, piece.end, piece.before) for piece in pieces],
            content,
        )

    found = read("s3://bucket/source")
    assert found == read(str(tmp_path))
    assert len(found[1]) > 10
    assert len(found[2]) == 2 * 3000 + 2 * 2500


def test_a_bucket_that_is_not_there_is_one_line(
    bucket: dict[str, str], toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    toy_recipe["workdir"] = "s3://no-such-bucket/job"
    done = dkd("prepare", write_recipe(tmp_path, toy_recipe), **bucket)
    assert done.returncode == 2
    assert "workdir s3://no-such-bucket/job/sequences cannot be written" in said(done)
