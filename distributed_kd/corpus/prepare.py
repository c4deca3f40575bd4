"""The prepare stage: source files -> sequence shards.

Three passes of Ray tasks. The first reads pieces of a block of whole files and tokenises them; the second packs what
came of each, with what its last sequences take of the next; the third cuts the packed blocks, end to end and split by
split, into shards of `shard_sequences`. What a shard holds follows from the source and the recipe, never from how many
workers there were nor from where a file was cut. Files in between carry the fingerprint in their names, so an
interrupted run takes up those that are there.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from distributed_kd import console
from distributed_kd.corpus.conversation import template_sha256
from distributed_kd.corpus.cut import Piece, Survey, digest_of, runs_of, survey
from distributed_kd.corpus.masking import Masking, views_of
from distributed_kd.corpus.packing import SPLITS, Span, pack, spanned, spans
from distributed_kd.corpus.sequences import (
    FOLDER,
    Sequence,
    SequencesManifest,
    SplitSummary,
    TokenizerIdentity,
    made_from_corpus,
    rows_to_sequences,
    sequences_to_columns,
)
from distributed_kd.corpus.source import SourceFile, list_files
from distributed_kd.corpus.tokenise import PartFile, parts_of, tokenise
from distributed_kd.errors import RequestError
from distributed_kd.launch.ray_session import ray_session, task_errors
from distributed_kd.models.config import load_config, longest_sequence, refuse_other_task
from distributed_kd.models.locate import locate
from distributed_kd.models.tokenizer import (
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
class _Packed:
    """What a packed file holds: sequences by split."""

    name: str
    sequences: dict[str, int]


def prepare(recipe: Recipe) -> SequencesManifest:
    """Writes `WORKDIR/sequences`, or finds it done. Raises `RequestError` for input that cannot be used."""
    begun = time.monotonic()
    corpus = recipe.corpus
    store = Store(recipe.workdir).child(FOLDER)
    files = list_files(corpus)
    _refuse_what_does_not_fit(corpus, recipe.teachers[0])
    name, revision = tokenizer_of(recipe)
    folder = locate(name, revision, weights=False)
    tokenizer = load_tokenizer(folder)
    identity = TokenizerIdentity(name=name, sha256=tokenizer_sha256(tokenizer), vocabulary_size=len(tokenizer))
    template = {}
    masking = None
    if corpus.task == "chat":
        template["chat_template_sha256"] = template_sha256(tokenizer, name)
    elif corpus.task == "masked_lm":
        masking = Masking.of(tokenizer, name)
    else:
        end_of_document(tokenizer, name)
    surveys = survey(files, corpus)
    made_from = {
        "corpus": made_from_corpus(corpus),
        "source": digest_of(files, surveys),
        "tokenizer_sha256": identity.sha256,
        **template,
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
        blocks = _blocks(files, surveys, corpus)
        done = iter(_tokenise([task for block in blocks for task in block], (name, revision), corpus, store, key))
        parts = [[file for _ in block for file in next(done)] for block in blocks]
        packed = _pack(parts, corpus, masking, store)
        _refuse_empty(packed, corpus)
        splits, entries = _cut(packed, [file for block in parts for file in block], corpus, store)
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
    unanswered = sum(file.unanswered for block in parts for file in block)
    if unanswered:
        count = f"{unanswered:,} conversations" if unanswered > 1 else "1 conversation"
        console.say(f"prepare: {count} in which the assistant says nothing left out")
    return manifest


def _blocks(files: list[SourceFile], surveys: list[Survey], corpus: Corpus) -> list[list[list[Piece]]]:
    """Blocks of tasks of pieces: documents are packed end to end within a block."""
    found = iter(surveys)
    return [
        runs_of([piece for _ in block for piece in next(found).pieces], corpus.block_bytes)
        for block in runs_of(files, corpus.block_bytes)
    ]


def _tokenise(
    tasks: list[list[Piece]], model: tuple[str, str | None], corpus: Corpus, store: Store, key: str
) -> list[list[PartFile]]:
    """Each task's files of parts."""
    import ray

    task = ray.remote(num_cpus=1)(tokenise)
    references = [task.remote(pieces, model, corpus, store, _block_name(key, i)) for i, pieces in enumerate(tasks)]
    done: list[list[PartFile]] = []
    documents = 0
    with console.progress("prepare", len(tasks)) as advance, task_errors():
        for reference in references:
            done.append(ray.get(reference))
            documents += sum(sum(file.documents.values()) for file in done[-1])
            advance(len(done), f"{documents:,} documents")
    return done


def _pack(blocks: list[list[PartFile]], corpus: Corpus, masking: Masking | None, store: Store) -> list[_Packed]:
    """Packs each file of parts with what its last sequences take of the following ones of its block."""
    import ray

    task = ray.remote(num_cpus=1)(_write_packed)
    references: list[Any] = []
    for files in blocks:
        found = {split: spans([file.extents[split] for file in files], corpus) for split in SPLITS}
        for place, file in enumerate(files):
            own = {split: found[split][place] for split in SPLITS}
            names = [file.name, *_following(files[place + 1 :], own)]
            references.append(task.remote(names, own, corpus, masking, store))
    done: list[_Packed] = []
    with console.progress("pack", len(references)) as advance, task_errors():
        for reference in references:
            done.append(ray.get(reference))
            advance(len(done), f"{sum(sum(packed.sequences.values()) for packed in done):,} sequences")
    return done


def _following(files: list[PartFile], own: dict[str, Span]) -> list[str]:
    """The names of as many files as hold what is taken of every split; of all where they end before."""
    left = {split: span.take for split, span in own.items()}
    names: list[str] = []
    for file in files:
        if max(left.values()) <= 0:
            break
        names.append(file.name)
        left = {split: left[split] - file.extents[split].tokens for split in left}
    return names


def _cut(
    packed: list[_Packed], parts: list[PartFile], corpus: Corpus, store: Store
) -> tuple[dict[str, SplitSummary], list[ShardEntry]]:
    """Numbers the shards through the splits and has each written from the rows of the packed files it covers."""
    import ray

    task = ray.remote(num_cpus=1)(_write_shard)
    splits: dict[str, SplitSummary] = {}
    entries: list[ShardEntry] = []
    shard = 0
    sequence_id = 0
    for split in SPLITS:
        starts = np.cumsum([0] + [file.sequences[split] for file in packed])
        total = int(starts[-1])
        references: list[Any] = []
        for begin in range(0, total, corpus.shard_sequences):
            end = min(begin + corpus.shard_sequences, total)
            covered = range(int(np.searchsorted(starts, begin, "right")) - 1, int(np.searchsorted(starts, end, "left")))
            rows = [
                (packed[place].name, max(begin, int(starts[place])) - int(starts[place]), end - int(starts[place]))
                for place in covered
            ]
            references.append(task.remote(rows, split, corpus, store, shard + len(references), sequence_id + begin))
        with task_errors():
            written = ray.get(references)
        splits[split] = SplitSummary(
            documents=sum(file.documents[split] for file in parts),
            sequences=total,
            positions=sum(entry.positions for entry in written),
            first_shard=shard,
            end_shard=shard + len(written),
        )
        shard += len(written)
        sequence_id += total
        entries += written
    return splits, entries


def _write_packed(
    names: list[str], own: dict[str, Span], corpus: Corpus, masking: Masking | None, store: Store
) -> _Packed:
    """Ray task: the sequences that begin in the first file of parts, as one packed file, its rows ordered by split."""
    name = names[0].removesuffix(".arrow") + ".packed.arrow"
    if store.exists(name):
        return _summary(name, pa.ipc.open_file(pa.BufferReader(store.read(name))).read_all())
    parts = [parts_of(store, part_name) for part_name in names]
    sequences: dict[str, list[Sequence]] = {}
    for split in SPLITS:
        following = chain.from_iterable(file[split] for file in parts[1:])
        sequences[split] = list(pack(spanned(parts[0][split], following, own[split], corpus), corpus))
        if masking is not None:
            views = corpus.views if split == "train" else 1
            sequences[split] = [view for one in sequences[split] for view in views_of(one, masking, corpus, views)]
    flat = [sequence for split in SPLITS for sequence in sequences[split]]
    table = pa.table(sequences_to_columns(flat)).append_column(
        "split", pa.array([split for split in SPLITS for _ in sequences[split]], pa.string())
    )
    store.put(name, table_bytes(table))
    return _summary(name, table)


def _summary(name: str, table: pa.Table) -> _Packed:
    rows = Counter(table.column("split").to_pylist())
    return _Packed(name, {split: rows[split] for split in SPLITS})


def _write_shard(
    covered: list[tuple[str, int, int]], split: str, corpus: Corpus, store: Store, shard: int, first_id: int
) -> ShardEntry:
    """Ray task: rows [begin, end) of a split out of each named packed file, as one shard."""
    sequences: list[Sequence] = []
    for name, begin, end in covered:
        table = pa.ipc.open_file(pa.BufferReader(store.read(name))).read_all()
        rows = np.flatnonzero(np.array(table.column("split").to_pylist(), dtype=object) == split)[begin:end]
        sequences += rows_to_sequences(table.take(pa.array(rows)), corpus.packing == "isolate")
    numbered = [replace(sequence, sequence_id=first_id + place) for place, sequence in enumerate(sequences)]
    table = pa.table(sequences_to_columns(numbered))
    return put_shard(store, shard, table, sum(sequence.positions for sequence in numbered))


def _block_name(key: str, task: int) -> str:
    return f"{BLOCKS}/{key[:16]}-{task:06d}"


def _refuse_what_does_not_fit(corpus: Corpus, teacher: Teacher) -> None:
    config = load_config(locate(teacher.model, teacher.revision, weights=False))
    refuse_other_task(config, teacher.model, corpus.task)
    bound, sequence_length = longest_sequence(config), corpus.sequence_length
    if bound is not None and sequence_length > bound:
        raise RequestError(
            f"corpus.sequence_length {sequence_length} is beyond the teacher's {bound} positions ({teacher.model})"
        )


def _refuse_empty(packed: list[_Packed], corpus: Corpus) -> None:
    for split, fraction in (
        ("train", 1.0),
        ("validation", corpus.validation_fraction),
        ("development", corpus.development_fraction),
    ):
        if fraction and not sum(file.sequences[split] for file in packed):
            raise RequestError(
                f"corpus.source {', '.join(corpus.sources)}: no {split} sequence came out of it; give more documents"
                + ("" if split == "train" else f" or raise corpus.{split}_fraction")
            )
