"""The passes of prepare in one process: what is packed does not depend on where a file was cut, and is taken up."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distributed_kd.corpus.bytes_of import stretches
from distributed_kd.corpus.cut import survey
from distributed_kd.corpus.masking import Masking
from distributed_kd.corpus.packing import SPLITS, spans
from distributed_kd.corpus.prepare import _blocks, _following, _write_packed
from distributed_kd.corpus.sequences import Sequence, rows_to_sequences
from distributed_kd.corpus.source import list_files
from distributed_kd.corpus.tokenise import PartFile, tokenise
from distributed_kd.models.tokenizer import load_tokenizer
from distributed_kd.recipe import Corpus
from distributed_kd.store.filesystem import Store
from tests import toys


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    toys.save_tokenizer(folder, chat_template=toys.CHAT_TEMPLATE)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return str(folder)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 texts of 20 to 99 words as JSON lines."""
    folder = toys.write_corpus(tmp_path_factory.mktemp("texts"), 80)
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_text("".join(json.dumps({"text": file.read_text()}) + "\n" for file in sorted(folder.iterdir())))
    return path


def parts(tokenizer: str, corpus: Corpus, store: Store) -> list[list[PartFile]]:
    """The first pass: each block's files of parts."""
    files = list_files(corpus)
    blocks = _blocks(files, survey(files, corpus), corpus)
    return [
        [
            file
            for task, pieces in enumerate(block)
            for file in tokenise(pieces, (tokenizer, None), corpus, store, f"blocks/{number}-{task}")
        ]
        for number, block in enumerate(blocks)
    ]


def packed(tokenizer: str, corpus: Corpus, store: Store) -> dict[str, list[Sequence]]:
    """The first two passes: the sequences of each split."""
    found: dict[str, list[Sequence]] = {split: [] for split in SPLITS}
    for files in parts(tokenizer, corpus, store):
        ranges = {split: spans([file.extents[split] for file in files], corpus) for split in SPLITS}
        for place, file in enumerate(files):
            own = {split: ranges[split][place] for split in SPLITS}
            names = [file.name, *_following(files[place + 1 :], own)]
            masking = None
            if corpus.task == "masked_lm":
                masking = Masking.of(load_tokenizer(Path(tokenizer)), tokenizer)
            done = _write_packed(names, own, corpus, masking, store)
            table = pa.ipc.open_file(pa.BufferReader(store.read(done.name))).read_all()
            rows = np.array(table.column("split").to_pylist(), dtype=object)
            for split in SPLITS:
                taken = table.take(pa.array(np.flatnonzero(rows == split)))
                found[split] += rows_to_sequences(taken, corpus.packing == "isolate")
                assert len(taken) == done.sequences[split]
    return found


def same(one: dict[str, list[Sequence]], other: dict[str, list[Sequence]]) -> None:
    for split in SPLITS:
        assert len(one[split]) == len(other[split])
        for left, right in zip(one[split], other[split], strict=True):
            for field in ("input_ids", "loss_mask", "labels", "documents", "document_lengths"):
                np.testing.assert_array_equal(getattr(left, field), getattr(right, field))


@pytest.mark.parametrize(
    ("task", "packing"),
    [(task, packing) for task in ("causal_lm", "chat") for packing in ("none", "isolate", "concatenate")]
    + [("masked_lm", "none"), ("masked_lm", "concatenate")],
)
def test_sequences_do_not_depend_on_where_the_file_was_cut(
    tokenizer: str, texts: Path, tmp_path: Path, packing: str, task: str
) -> None:
    if task == "masked_lm":
        tokenizer = str(tmp_path / "masked")
        toys.save_masked_tokenizer(Path(tokenizer))
        (Path(tokenizer) / "config.json").write_text('{"model_type": "bert"}')
    source = toys.write_conversations(tmp_path / "chat.jsonl", 80) if task == "chat" else texts
    keys: dict[str, Any] = {"packing": packing, "task": task, "sequence_length": 16, "validation_fraction": 0.2}
    keys["development_fraction"] = 0.1
    memory = Store(f"memory:/{tmp_path}")
    whole = packed(tokenizer, Corpus(source=str(source), block_bytes=1 << 30, **keys), memory.child("whole"))
    assert all(whole.values())
    for block_bytes, least in ((600, 20), (4000, 4)):
        store = memory.child(str(block_bytes))
        same(packed(tokenizer, Corpus(source=str(source), block_bytes=block_bytes, **keys), store), whole)
        assert len([name for name in store.list("blocks") if name.endswith(".json")]) >= least
    # Compressed there is one reader; what it holds at once is bounded, so that there are as many files.
    small = tmp_path / "x.jsonl.gz"
    small.write_bytes(gzip.compress(source.read_bytes()))
    store = memory.child("compressed")
    same(packed(tokenizer, Corpus(source=str(small), block_bytes=2000, **keys), store), whole)
    names = store.list("blocks")
    assert [name for name in names if name.endswith(".json")] == ["0-0.json"]
    assert "0-0-0005.arrow" in names


@pytest.mark.parametrize("windows", [None, 2])
def test_sequences_do_not_depend_on_where_a_long_text_was_cut(
    tokenizer: str, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: int | None
) -> None:
    """Texts tokenised in stretches of 700 bytes, by one task each or by several."""
    monkeypatch.setattr("distributed_kd.corpus.cut.STRETCH_BYTES", 700)
    monkeypatch.setattr(stretches, "__defaults__", (700,))
    lines = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("\n".join(lines[number * 8 : number * 8 + 8]))
    keys: dict[str, Any] = {"source": str(tmp_path), "packing": "none", "sequence_length": 16}
    keys |= {"validation_fraction": 0.3, "development_fraction": 0.3, "sequences_per_document": windows}
    memory = Store(f"memory:/{tmp_path}")
    found = [
        packed(tokenizer, Corpus(**keys, block_bytes=block_bytes), memory.child(str(block_bytes)))
        for block_bytes in (1 << 30, 800)
    ]
    same(*found)
    tasks = [name for name in memory.list("800/blocks") if name.endswith(".json")]
    assert len(tasks) == 10 if windows else len(tasks) > 15
    documents = {int(document) for split in SPLITS for row in found[0][split] for document in row.documents}
    assert len(documents) == 10
    ids = sum(len(row.input_ids) for split in SPLITS for row in found[0][split])
    wanted = sum(len(text.split()) for text in lines) + 10  # each text's end
    assert ids == 10 * 2 * 16 if windows else wanted - 10 <= ids <= wanted  # an id alone is no sequence


def test_a_task_that_is_done_is_taken_up(tokenizer: str, texts: Path, tmp_path: Path) -> None:
    corpus = Corpus(source=str(texts), block_bytes=3000, sequence_length=16)
    store = Store(str(tmp_path))
    first = parts(tokenizer, corpus, store)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "blocks").iterdir()}
    assert parts(tokenizer, corpus, store) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "blocks").iterdir()} == written


def test_loss_falls_on_the_assistants_words_in_every_packing(tokenizer: str, tmp_path: Path) -> None:
    """Every position that carries loss predicts what the assistant says, and with room for it, all of that."""
    source = toys.write_conversations(tmp_path / "chat.jsonl")
    wanted = 0
    for line in source.read_text().splitlines():
        answers = [message["content"] for message in json.loads(line)["messages"] if message["role"] == "assistant"]
        wanted += sum(len(answer.split()) + 1 for answer in answers)
    for packing in ("none", "isolate", "concatenate"):
        corpus = Corpus(source=str(source), task="chat", packing=packing, sequence_length=128, validation_fraction=0.2)
        found = packed(tokenizer, corpus, Store(f"memory:/{tmp_path}/{packing}"))
        sequences = [sequence for split in SPLITS for sequence in found[split]]
        for sequence in sequences:
            speaker = None
            says = []
            for word in sequence.input_ids.tolist():  # w60 is the assistant, w61 is not; 0 ends what is said
                says.append(speaker == 62)
                speaker = word if word in (62, 63) else None if word == 0 else speaker
            expected = np.append(says[1:], False)
            first = int(np.flatnonzero(np.isin(sequence.input_ids, (62, 63)))[0])  # before it a turn goes on
            np.testing.assert_array_equal(sequence.loss_mask[first:], expected[first:])
            if packing == "isolate":
                ends = np.cumsum(sequence.document_lengths)[:-1]
                assert (sequence.position_ids[ends] == 0).all()
        total = sum(sequence.positions for sequence in sequences)
        assert total == wanted if packing == "none" else 0.98 * wanted < total <= wanted


def test_conversations_without_an_answer_are_counted(tokenizer: str, tmp_path: Path) -> None:
    source = toys.write_conversations(tmp_path / "chat.jsonl", 20)
    asked, said = {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}
    # What the assistant says first of all answers nothing.
    unanswered = [json.dumps({"messages": messages}) for messages in ([], [asked], [said], [said, asked])]
    source.write_text(source.read_text() + "\n" + "\n".join(unanswered))
    corpus = Corpus(source=str(source), task="chat", sequence_length=16, validation_fraction=0.0)
    ((file,),) = parts(tokenizer, corpus, Store(str(tmp_path)))
    assert file.unanswered == 4
    assert file.documents == {"train": 20, "development": 0, "validation": 0}
