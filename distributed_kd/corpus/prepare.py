"""The prepare stage: source files -> sequence shards.

Two passes of Ray tasks. The first reads a block of whole files and writes its sequences as one block file; the
second cuts the blocks, end to end and split by split, into shards of `shard_sequences`. What a shard holds follows
from the source and the recipe, never from how many workers there were. A block file carries the fingerprint in its
name, so an interrupted run takes up the blocks that are there.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from distributed_kd import console
from distributed_kd.corpus import read
from distributed_kd.corpus.packing import SPLITS, document_id, pack, pieces, split_of
from distributed_kd.corpus.sequences import (
    FOLDER,
    SCHEMA,
    Sequence,
    SequencesManifest,
    SplitSummary,
    TokenizerIdentity,
    made_from_corpus,
    rows_to_sequences,
    sequences_to_columns,
)
from distributed_kd.errors import RequestError
from distributed_kd.launch.ray_session import ray_session, task_errors
from distributed_kd.models.config import load_config, longest_sequence
from distributed_kd.models.locate import locate
from distributed_kd.models.tokenizer import (
    beginning_of_document,
    end_of_document,
    load_tokenizer,
    tokenizer_of,
    tokenizer_sha256,
)
from distributed_kd.recipe import Corpus, Recipe, Teacher, dump
from distributed_kd.store.digest import fingerprint
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import SHARDS, ShardEntry, put_index, put_shard, table_bytes
from distributed_kd.store.manifest import Run, peak_memory_bytes, refuse_other

BLOCKS = "blocks"


@dataclass(frozen=True)
class _Block:
    """What a block file holds: sequences and documents by split."""

    sequences: dict[str, int]
    documents: dict[str, int]


def prepare(recipe: Recipe) -> SequencesManifest:
    """Writes `WORKDIR/sequences`, or finds it done. Raises `RequestError` for input that cannot be used."""
    begun = time.monotonic()
    corpus = recipe.corpus
    store = Store(recipe.workdir).child(FOLDER)
    files = read.list_files(corpus)
    name, revision = tokenizer_of(recipe)
    folder = locate(name, revision, weights=False)
    tokenizer = load_tokenizer(folder)
    identity = TokenizerIdentity(name=name, sha256=tokenizer_sha256(tokenizer), vocabulary_size=len(tokenizer))
    end_of_document(tokenizer, name)
    _refuse_too_long(corpus.sequence_length, recipe.teachers[0])
    made_from = {
        "corpus": made_from_corpus(corpus),
        "source": read.digest_of(files),
        "tokenizer_sha256": identity.sha256,
    }
    found = SequencesManifest.read(store)
    if found is not None:
        refuse_other(found, made_from, store, "sequences")
        store.delete(BLOCKS)  # of one that was killed between its manifest and this
        console.say(f"prepare: done already ({store.uri}, fingerprint {found.fingerprint[:12]}), skipped")
        return found

    store.check_writable()
    key = fingerprint(made_from)
    with ray_session(recipe.capture.address):
        blocks = _tokenise(read.blocks_of(files, corpus.block_bytes), (name, revision), corpus, store, key)
        _refuse_empty(blocks, corpus)
        splits, entries = _cut(blocks, corpus, store, key)
    manifest = SequencesManifest(
        made_from=made_from,
        fingerprint=key,
        tokenizer=identity,
        sequence_length=corpus.sequence_length,
        packing=corpus.packing,
        splits=splits,
        index=put_index(store, entries),
    )
    store.put("recipe.yaml", dump(recipe).encode())
    Run(time.monotonic() - begun, peak_memory_bytes()).put(store)
    store.remove_leftovers("", SHARDS)
    manifest.put(store)
    store.delete(BLOCKS)
    return manifest


def _tokenise(
    blocks: list[list[read.SourceFile]], model: tuple[str, str | None], corpus: Corpus, store: Store, key: str
) -> list[_Block]:
    import ray

    task = ray.remote(num_cpus=1)(_write_block)
    references = [task.remote(files, model, corpus, store, _block_name(key, i)) for i, files in enumerate(blocks)]
    done: list[_Block] = []
    with console.progress("prepare", len(blocks)) as advance, task_errors():
        for reference in references:
            done.append(ray.get(reference))
            advance(len(done), f"{sum(sum(block.sequences.values()) for block in done):,} sequences")
    return done


def _cut(
    blocks: list[_Block], corpus: Corpus, store: Store, key: str
) -> tuple[dict[str, SplitSummary], list[ShardEntry]]:
    """Numbers the shards through the splits and has each written from the rows of the blocks it covers."""
    import ray

    task = ray.remote(num_cpus=1)(_write_shard)
    splits: dict[str, SplitSummary] = {}
    entries: list[ShardEntry] = []
    shard = 0
    sequence_id = 0
    for split in SPLITS:
        starts = np.cumsum([0] + [block.sequences[split] for block in blocks])
        total = int(starts[-1])
        references: list[Any] = []
        for begin in range(0, total, corpus.shard_sequences):
            end = min(begin + corpus.shard_sequences, total)
            covered = range(int(np.searchsorted(starts, begin, "right")) - 1, int(np.searchsorted(starts, end, "left")))
            parts = [
                (_block_name(key, block), max(begin, int(starts[block])) - int(starts[block]), end - int(starts[block]))
                for block in covered
            ]
            references.append(task.remote(parts, split, corpus, store, shard + len(references), sequence_id + begin))
        with task_errors():
            written = ray.get(references)
        splits[split] = SplitSummary(
            documents=sum(block.documents[split] for block in blocks),
            sequences=total,
            positions=sum(entry.positions for entry in written),
            first_shard=shard,
            end_shard=shard + len(written),
        )
        shard += len(written)
        sequence_id += total
        entries += written
    return splits, entries


def _write_block(
    files: list[read.SourceFile], model: tuple[str, str | None], corpus: Corpus, store: Store, name: str
) -> _Block:
    """Ray task: one block of files to one block file, its rows ordered by split."""
    if store.exists(name):
        return _summary(pa.ipc.open_file(pa.BufferReader(store.read(name))).read_all())
    tokenizer = load_tokenizer(locate(*model, weights=False))
    before, after = beginning_of_document(tokenizer), [end_of_document(tokenizer, model[0])]
    parts: dict[str, list[tuple[int, np.ndarray]]] = {split: [] for split in SPLITS}
    documents: Counter[str] = Counter()
    for file in files:
        for text in read.documents(file, corpus.text_column):
            document = document_id(text)
            split = split_of(document, corpus)
            if not text.strip() or split is None:
                continue
            ids = np.array([*before, *tokenizer(text, add_special_tokens=False).input_ids, *after], dtype=np.int32)
            documents[split] += 1
            parts[split] += [(document, piece) for piece in pieces(document, ids, corpus)]
    sequences = {split: list(pack(parts[split], corpus)) for split in SPLITS}
    flat = [sequence for split in SPLITS for sequence in sequences[split]]
    table = pa.table(sequences_to_columns(flat), schema=SCHEMA).append_column(
        "split", pa.array([split for split in SPLITS for _ in sequences[split]], pa.string())
    )
    counts = {f"documents.{split}": str(documents[split]) for split in SPLITS}
    table = table.replace_schema_metadata(counts)
    store.put(name, table_bytes(table))
    return _summary(table)


def _summary(table: pa.Table) -> _Block:
    rows = Counter(table.column("split").to_pylist())
    metadata = table.schema.metadata
    return _Block(
        {split: rows[split] for split in SPLITS},
        {split: int(metadata[f"documents.{split}".encode()]) for split in SPLITS},
    )


def _write_shard(
    parts: list[tuple[str, int, int]], split: str, corpus: Corpus, store: Store, shard: int, first_id: int
) -> ShardEntry:
    """Ray task: rows [begin, end) of a split out of each named block file, as one shard."""
    sequences: list[Sequence] = []
    for name, begin, end in parts:
        table = pa.ipc.open_file(pa.BufferReader(store.read(name))).read_all()
        rows = np.flatnonzero(np.array(table.column("split").to_pylist(), dtype=object) == split)[begin:end]
        sequences += rows_to_sequences(table.take(pa.array(rows)), corpus.packing == "isolate")
    numbered = [replace(sequence, sequence_id=first_id + place) for place, sequence in enumerate(sequences)]
    table = pa.table(sequences_to_columns(numbered), schema=SCHEMA)
    return put_shard(store, shard, table, sum(sequence.positions for sequence in numbered))


def _block_name(key: str, block: int) -> str:
    return f"{BLOCKS}/{key[:16]}-{block:06d}.arrow"


def _refuse_too_long(sequence_length: int, teacher: Teacher) -> None:
    bound = longest_sequence(load_config(locate(teacher.model, teacher.revision, weights=False)))
    if bound is not None and sequence_length > bound:
        raise RequestError(
            f"corpus.sequence_length {sequence_length} is beyond the teacher's {bound} positions ({teacher.model})"
        )


def _refuse_empty(blocks: list[_Block], corpus: Corpus) -> None:
    for split, fraction in (
        ("train", 1.0),
        ("validation", corpus.validation_fraction),
        ("development", corpus.development_fraction),
    ):
        if fraction and not sum(block.sequences[split] for block in blocks):
            raise RequestError(
                f"corpus.source {', '.join(corpus.sources)}: no {split} sequence came out of it; give more documents"
                + ("" if split == "train" else f" or raise corpus.{split}_fraction")
            )
