"""The first pass of prepare: pieces of the source to files of parts, tokenised and not packed yet.

A task writes files of about `block_bytes` of ids, so it holds no more than one however much it reads, and last of all
the list of them; a task whose list is there is done. Nothing is packed here, as what a sequence holds may begin in the
piece before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from distributed_kd.corpus import conversation
from distributed_kd.corpus.cut import Piece
from distributed_kd.corpus.packing import SPLITS, Extent, Part, Windows, split_of
from distributed_kd.corpus.read import Document, documents
from distributed_kd.corpus.source import make_builtin
from distributed_kd.models.locate import locate
from distributed_kd.models.tokenizer import beginning_of_document, end_of_document, load_tokenizer
from distributed_kd.recipe import Corpus
from distributed_kd.store.digest import canonical_json
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import table_bytes

_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("document", pa.int64()),
        ("begins", pa.bool_()),
        ("ids", pa.large_list(pa.int32())),
        ("said", pa.large_list(pa.bool_())),
    ]
)
_ID_BYTES = 4


@dataclass(frozen=True)
class PartFile:
    """A file of parts: by split, how many documents begin in it and how many ids it holds."""

    name: str
    documents: dict[str, int]
    extents: dict[str, Extent]
    unanswered: int = 0  # conversations left out, as the assistant says nothing in them


def tokenise(
    pieces: list[Piece], model: tuple[str, str | None], corpus: Corpus, store: Store, name: str
) -> list[PartFile]:
    """Ray task: the pieces' documents to files `NAME-0000.arrow` and so on, listed in `NAME.json`."""
    done = f"{name}.json"
    if store.exists(done):
        return [_part_file(entry) for entry in json.loads(store.read(done))]
    make_builtin(corpus)
    tokenizer = _tokenizer(model)
    files: list[PartFile] = []
    held = _Held()
    for document, parts in _encoded(pieces, tokenizer, model[0], corpus):
        held.add(document, parts, corpus)
        if held.tokens * _ID_BYTES >= corpus.block_bytes:
            files.append(held.put(store, f"{name}-{len(files):04d}.arrow"))
            held = _Held()
    files.append(held.put(store, f"{name}-{len(files):04d}.arrow"))
    store.put(done, canonical_json([asdict(file) for file in files]))
    return files


def parts_of(store: Store, name: str) -> dict[str, list[Part]]:
    """What a file of parts holds, by split."""
    table = pa.ipc.open_file(pa.BufferReader(store.read(name))).read_all().combine_chunks()
    found: dict[str, list[Part]] = {split: [] for split in SPLITS}
    if not table.num_rows:
        return found
    offsets = table.column("ids").chunk(0).offsets.to_numpy()
    ids, said = (table.column(key).chunk(0).values.to_numpy(zero_copy_only=False) for key in ("ids", "said"))
    rows = zip(*(table.column(key).to_pylist() for key in ("split", "document", "begins")), strict=True)
    for row, (split, document, begins) in enumerate(rows):
        cut = slice(offsets[row], offsets[row + 1])
        found[split].append(Part(document, ids[cut], said[cut], begins))
    return found


@lru_cache(maxsize=1)
def _tokenizer(model: tuple[str, str | None]) -> Any:
    """A worker process keeps it for its next task: loading one takes longer than a small task."""
    return load_tokenizer(locate(*model, weights=False))


class _Held:
    """What is to go into a file of parts."""

    def __init__(self) -> None:
        self.tokens = 0
        self._parts: dict[str, list[Part]] = {split: [] for split in SPLITS}
        self._documents = dict.fromkeys(SPLITS, 0)
        self._unanswered = 0

    def add(self, document: Document, parts: list[Part] | None, corpus: Corpus) -> None:
        """`None` for the parts: a conversation to be left out."""
        if parts is None:
            self._unanswered += 1
            return
        split = split_of(document.id, corpus)
        assert split is not None
        self._documents[split] += document.begins
        self._parts[split] += parts
        self.tokens += sum(map(len, parts))

    def put(self, store: Store, name: str) -> PartFile:
        flat = [(split, part) for split in SPLITS for part in self._parts[split]]
        offsets = pa.array(np.cumsum([0] + [len(part) for _, part in flat]), pa.int64())

        def lists(arrays: list[np.ndarray], kind: pa.DataType) -> pa.Array:
            values = np.concatenate(arrays) if arrays else np.empty(0)
            return pa.LargeListArray.from_arrays(offsets, pa.array(values, type=kind))

        table = pa.table(
            [
                pa.array([split for split, _ in flat], pa.string()),
                pa.array([part.document for _, part in flat], pa.int64()),
                pa.array([part.begins for _, part in flat], pa.bool_()),
                lists([part.ids for _, part in flat], pa.int32()),
                lists([part.said for _, part in flat], pa.bool_()),
            ],
            schema=_SCHEMA,
        )
        store.put(name, table_bytes(table))
        extents = {split: Extent.of(self._parts[split]) for split in SPLITS}
        return PartFile(name, dict(self._documents), extents, self._unanswered)


def _encoded(
    pieces: list[Piece], tokenizer: Any, name: str, corpus: Corpus
) -> Iterator[tuple[Document, list[Part] | None]]:
    """Each document that is in a split and its parts. A part holds one id at least."""
    encode = _encoder(tokenizer, name, corpus)
    windows: Windows | None = None
    begins = False
    for document in (document for piece in pieces for document in documents(piece, corpus)):
        if split_of(document.id, corpus) is None or _is_blank(document):
            continue
        encoded = encode(document)
        if encoded is None:
            yield document, None
            continue
        # A stretch of a text may come to no ids: then the next one is where the document begins.
        begins = begins or document.begins
        part = Part(document.id, *encoded, begins=begins)
        begins = begins and not len(part)
        if corpus.sequences_per_document is not None:
            if document.begins or windows is None:
                windows = Windows(document.id, corpus, corpus.sequences_per_document)
            windows.add(part)
            yield document, windows.parts() if document.ends else []
        else:
            yield document, [part] if len(part) else []


def _is_blank(document: Document) -> bool:
    is_whole = document.begins and document.ends
    return isinstance(document.content, str) and is_whole and not document.content.strip()


def _encoder(tokenizer: Any, name: str, corpus: Corpus) -> Callable[[Document], tuple[np.ndarray, np.ndarray] | None]:
    """A document's ids and which of them are to be predicted; None for a conversation without an answer."""
    if corpus.task == "chat":

        def of_conversation(document: Document) -> tuple[np.ndarray, np.ndarray] | None:
            assert not isinstance(document.content, str)
            if not conversation.has_answer(document.content):
                return None
            ids, said = conversation.encode(tokenizer, name, document.content, document.place)
            return (ids, said) if said.any() else None

        return of_conversation
    # What begins and ends a masked sequence is put there when it is whole; between documents stands what ends one.
    before = [] if corpus.task == "masked_lm" else beginning_of_document(tokenizer)
    after = [tokenizer.sep_token_id if corpus.task == "masked_lm" else end_of_document(tokenizer, name)]

    def of_text(document: Document) -> tuple[np.ndarray, np.ndarray]:
        ids = tokenizer(document.content, add_special_tokens=False).input_ids
        ids = np.array([*(before if document.begins else []), *ids, *(after if document.ends else [])], dtype=np.int32)
        return ids, np.ones(len(ids), dtype=bool)

    return of_text


def _part_file(entry: dict[str, Any]) -> PartFile:
    extents = {split: Extent(**extent) for split, extent in entry["extents"].items()}
    return replace(PartFile(**entry), extents=extents)
