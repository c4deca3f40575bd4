"""The prepare stage over Ray on large and odd sources, and how much memory reading takes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from distributed_kd.corpus.prepare import prepare
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.errors import RequestError
from distributed_kd.recipe import parse
from distributed_kd.store.filesystem import Store
from tests import toys
from tests.commands import ROOT

pytestmark = pytest.mark.slow


def shards(recipe: dict[str, Any], work: Path, **corpus: Any) -> dict[str, bytes]:
    prepare(parse({**recipe, "workdir": str(work), "corpus": {**recipe["corpus"], **corpus}}))
    assert not (work / "sequences" / "blocks").exists()
    return {path.name: path.read_bytes() for path in (work / "sequences" / "shards").iterdir()}


@pytest.mark.parametrize("packing", ["none", "isolate", "concatenate"])
def test_a_large_file_gives_the_same_shards_however_many_tasks_read_it(
    toy_recipe: dict[str, Any], toy_corpus: Path, tmp_path: Path, ray_cluster: Any, packing: str
) -> None:
    source = tmp_path / "x.jsonl"
    source.write_text("".join(json.dumps({"text": path.read_text()}) + "\n" for path in sorted(toy_corpus.iterdir())))
    keys = {"source": str(source), "packing": packing}
    whole = shards(toy_recipe, tmp_path / "whole", **keys, block_bytes=1 << 30)
    assert len(whole) > 5
    assert shards(toy_recipe, tmp_path / "cut", **keys, block_bytes=1000) == whole
    (tmp_path / "x.jsonl.zst").write_bytes(zstandard.compress(source.read_bytes()))
    source.unlink()
    compressed = {"source": str(tmp_path / "x.jsonl.zst"), "packing": packing}
    assert shards(toy_recipe, tmp_path / "compressed", **compressed, block_bytes=1000) == whole


def test_conversations_become_sequences_and_another_template_others(
    toy_recipe: dict[str, Any], tmp_path: Path, ray_cluster: Any
) -> None:
    source = toys.write_conversations(tmp_path / "x.jsonl")
    toy_recipe["corpus"] |= {"source": str(source), "task": "chat"}
    with pytest.raises(RequestError, match="has no chat template"):
        prepare(parse(toy_recipe))
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "config.json").write_text('{"model_type": "llama"}')
    toys.save_tokenizer(tokenizer, chat_template=toys.CHAT_TEMPLATE)
    toy_recipe["corpus"]["tokenizer"] = str(tokenizer)
    done = prepare(parse(toy_recipe))
    assert sum(split.documents for split in done.splits.values()) == 40
    rows = Sequences.open(Store(toy_recipe["workdir"])).read(0)
    assert 0 < sum(row.positions for row in rows) < sum(len(row.input_ids) for row in rows)
    toys.save_tokenizer(tokenizer, chat_template=toys.CHAT_TEMPLATE + "w0")
    with pytest.raises(RequestError, match="chat_template_sha256"):
        prepare(parse(toy_recipe))


def test_the_line_that_is_wrong_reaches_the_user_from_a_task(
    toy_recipe: dict[str, Any], tmp_path: Path, ray_cluster: Any
) -> None:
    source = tmp_path / "x.jsonl.gz"
    source.write_bytes(gzip.compress(b'{"text": "w1 w2"}\n' * 40 + b'{"body": 1}\n'))
    toy_recipe["corpus"]["source"] = str(source)
    with pytest.raises(RequestError, match=r"x\.jsonl\.gz line 41 has no column 'text'"):
        prepare(parse(toy_recipe))


def test_a_source_that_has_changed_under_its_name_is_noticed(
    toy_recipe: dict[str, Any], tmp_path: Path, ray_cluster: Any
) -> None:
    """By its digest: name, size and time are those that they were. What is there stays as it is."""
    source = toys.write_corpus(tmp_path)
    one = sorted(source.glob("*.txt"))[3]
    toy_recipe["corpus"]["source"] = str(source)
    recipe = parse(toy_recipe)
    first = prepare(recipe)
    assert prepare(recipe) == first
    before = {path: path.read_bytes() for path in Path(recipe.workdir).rglob("*") if path.is_file()}
    text, times = one.read_text(), one.stat()
    one.write_text("w1" + text[2:] if not text.startswith("w1") else "w2" + text[2:])
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert one.stat().st_size == times.st_size and one.stat().st_mtime_ns == times.st_mtime_ns
    with pytest.raises(RequestError, match=r"holds sequences made from something else .*; choose another `workdir`"):
        prepare(recipe)
    assert {path: path.read_bytes() for path in Path(recipe.workdir).rglob("*") if path.is_file()} == before
    one.write_text(text)
    assert prepare(recipe) == first


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl", ".txt.gz"])
def test_reading_takes_no_more_memory_than_a_part_of_the_file(tmp_path: Path, ending: str) -> None:
    """300 MB once decompressed, from its digest to its last document, in a process of its own.

    Its peak is what the kernel says of its memory: getrusage counts the process that it was started from.
    """
    path = tmp_path / f"x{ending}"
    line = json.dumps({"text": "many words " * 90}).encode() + b"\n"
    count = 300_000_000 // len(line)
    with gzip.open(path, "wb", compresslevel=1) if ending.endswith(".gz") else path.open("wb") as file:
        for _ in range(count // 1000):
            file.write(line * 1000)
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from distributed_kd.corpus.cut import survey\n"
        "from distributed_kd.corpus.read import documents\n"
        "from distributed_kd.corpus.source import list_files\n"
        "from distributed_kd.recipe import Corpus\n"
        "def read(path):\n"
        "    corpus = Corpus(source=path)\n"
        "    pieces = [piece for found in survey(list_files(corpus), corpus) for piece in found.pieces]\n"
        "    return sum(len(document.content) for piece in pieces for document in documents(piece, corpus))\n"
        "def peak():\n"
        "    return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "read(sys.argv[1])\n"
        "before = peak()\n"
        "print(json.dumps([read(sys.argv[2]), peak() - before]))\n"
    )
    small = tmp_path / f"small{ending}"
    small.write_bytes(gzip.compress(line) if ending.endswith(".gz") else line)
    done = subprocess.run(
        [sys.executable, "-c", code, str(small), str(path)],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=500,
    )  # fmt: skip
    characters, kibibytes = json.loads(done.stdout)
    assert characters > 290_000_000
    # Of a long text two stretches of 16 MiB, being read, cut and decoded; else a few buffers.
    assert kibibytes * 1024 < (150 if ending.startswith(".txt") else 40) * 1_000_000
