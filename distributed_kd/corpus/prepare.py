"""The prepare stage: source files -> sequence shards.

Three passes of Ray tasks. The first reads pieces of a block of whole files and tokenises them; the second packs what
came of each, with what its last sequences take of the next; the third cuts the packed blocks, end to end and split by
split, into shards of `shard_sequences`. What a shard holds follows from the source and the recipe, never from how many
workers there were nor from where a file was cut. Rows with labels of their own are not packed: the first pass makes
sequences of them. Files in between carry the fingerprint in their names, so an interrupted run takes up those that are
there.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distributed_kd import console
from distributed_kd.corpus.conversation import template_sha256
from distributed_kd.corpus.cut import Piece, Survey, digest_of, runs_of, survey
from distributed_kd.corpus.labelled import Inputs, sequences_of
from distributed_kd.corpus.masking import Masking, views_of
from distributed_kd.corpus.packed import Packed, find_packed, put_packed, read_packed
from distributed_kd.corpus.packing import SPLITS, Span, pack, spanned, spans
from distributed_kd.corpus.sequences import (
    FOLDER,
    NO_LABEL,
    Sequence,
    SequencesManifest,
    SplitSummary,
    TokenizerIdentity,
    made_from_corpus,
    sequences_to_columns,
)
from distributed_kd.corpus.source import SourceFile, list_files, make_builtin
from distributed_kd.corpus.tokenise import PartFile, parts_of, tokenise
from distributed_kd.errors import RequestError
from distributed_kd.launch.ray_session import ray_session, task_errors
from distributed_kd.models.config import (
    config_of_student,
    folder_of_config,
    load_config,
    longest_sequence,
    refuse_other_task,
    vocabulary_size,
)
from distributed_kd.models.locate import locate
from distributed_kd.models.tokenizer import (
    end_of_document,
    features_sha256,
    load_tokenizer,
    tokenizer_of,
    tokenizer_sha256,
)
from distributed_kd.recipe import Corpus, Recipe, dump
from distributed_kd.store.digest import fingerprint
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import SHARDS, ShardEntry, put_index, put_shard
from distributed_kd.store.manifest import Run, peak_memory_bytes, refuse_other

BLOCKS = "blocks"


def prepare(recipe: Recipe) -> SequencesManifest:
    """Writes `WORKDIR/sequences`, or finds it done. Raises `RequestError` for input that cannot be used."""
    begun = time.monotonic()
    corpus = recipe.corpus
    store = Store(recipe.workdir).child(FOLDER)
    files = list_files(corpus)
    name, folder = _model_of(recipe)
    config = load_config(folder)
    if not recipe.teachers:
        config = config_of_student(config, recipe.student, corpus.task)
    _refuse_what_does_not_fit(corpus, config, name)
    identity, more, masking = _inputs_of(recipe, config, name)
    surveys = survey(files, corpus)
    made_from = {
        "corpus": made_from_corpus(corpus),
        "source": digest_of(files, surveys),
        "tokenizer_sha256": identity.sha256,
        **more,
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
        tasks = [task for block in blocks for task in block]
        unanswered = 0
        if corpus.is_of_rows:
            width = config.features if corpus.takes_features else None
            inputs = Inputs(vocabulary_size(config), width, labels_alone=not recipe.teachers)
            packed, documents = _label(tasks, inputs, tokenizer_of(recipe), corpus, store, key)
        else:
            done = iter(_tokenise(tasks, tokenizer_of(recipe), corpus, store, key))
            parts = [[file for _ in block for file in next(done)] for block in blocks]
            packed = _pack(parts, corpus, masking, store)
            flat = [file for block in parts for file in block]
            documents = {split: sum(file.documents[split] for file in flat) for split in SPLITS}
            unanswered = sum(file.unanswered for file in flat)
        _refuse_empty(packed, corpus)
        splits, entries = _cut(packed, documents, corpus, store)
    manifest = SequencesManifest(
        made_from=made_from,
        fingerprint=key,
        tokenizer=identity,
        sequence_length=corpus.sequence_length,
        packing="none" if corpus.is_of_rows else corpus.packing,
        splits=splits,
        index=put_index(store, entries),
    )
    store.put("recipe.yaml", dump(recipe).encode())
    Run(time.monotonic() - begun, peak_memory_bytes()).put(store)
    store.remove_leftovers("", SHARDS)
    manifest.put(store)
    store.delete(BLOCKS)
    _say_what_lacks(manifest, unanswered, sum(file.left_out for file in packed))
    return manifest


def _say_what_lacks(manifest: SequencesManifest, unanswered: int, unmasked: int) -> None:
    if unanswered:
        count = f"{unanswered:,} conversations" if unanswered > 1 else "1 conversation"
        console.say(f"prepare: {count} in which the assistant says nothing left out")
    if unmasked:
        count = f"{unmasked:,} sequences" if unmasked > 1 else "1 sequence"
        console.say(f"prepare: {count} without a token to mask left out")
    without = [
        f"{split.unlabelled:,} of {split.positions:,} {name} positions"
        for name, split in manifest.splits.items()
        if split.unlabelled
    ]
    if without:
        console.say(f"prepare: {', '.join(without)} have no label")


def _model_of(recipe: Recipe) -> tuple[str, Path]:
    """Name and folder of the model that the sequences must fit: the first teacher, or a student without one."""
    if recipe.teachers:
        teacher = recipe.teachers[0]
        return teacher.model, locate(teacher.model, teacher.revision, weights=False)
    if recipe.student.config is not None:
        return "student.config", folder_of_config(recipe.student.config)
    assert recipe.student.model is not None  # the recipe's own rule
    return recipe.student.model, locate(recipe.student.model, weights=False)


def _inputs_of(recipe: Recipe, config: Any, name: str) -> tuple[TokenizerIdentity, dict[str, Any], Masking | None]:
    """What turns rows into ids, what else decides the sequences, and how they are masked."""
    corpus = recipe.corpus
    more: dict[str, Any] = {"classes": vocabulary_size(config)} if corpus.is_of_rows else {}
    if corpus.is_of_rows and not recipe.teachers:
        more["labels_alone"] = True
    if corpus.takes_features:
        sha256 = features_sha256(config)
        return TokenizerIdentity(name=name, sha256=sha256, vocabulary_size=config.num_labels), more, None
    name, revision = tokenizer_of(recipe)
    tokenizer = load_tokenizer(locate(name, revision, weights=False))
    identity = TokenizerIdentity(name=name, sha256=tokenizer_sha256(tokenizer), vocabulary_size=len(tokenizer))
    masking = None
    if corpus.task == "chat":
        more["chat_template_sha256"] = template_sha256(tokenizer, name)
    elif corpus.task == "masked_lm":
        masking = Masking.of(tokenizer, name)
    elif corpus.task == "causal_lm":
        end_of_document(tokenizer, name)
    return identity, more, masking


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
    documents, pace = 0, console.Pace("documents")
    with console.progress("prepare", len(tasks)) as advance, task_errors():
        for reference in references:
            done.append(ray.get(reference))
            documents += sum(sum(file.documents.values()) for file in done[-1])
            advance(len(done), f"blocks, {documents:,} documents, {pace(documents)}")
    return done


def _label(
    tasks: list[list[Piece]],
    inputs: Inputs,
    tokenizer: tuple[str, str | None],
    corpus: Corpus,
    store: Store,
    key: str,
) -> tuple[list[Packed], dict[str, int]]:
    """Each task's rows as a packed file, and how many documents there are of each split."""
    import ray

    task = ray.remote(num_cpus=1)(_write_labelled)
    references = [
        task.remote(pieces, inputs, tokenizer, corpus, store, f"{_block_name(key, number)}.packed.arrow")
        for number, pieces in enumerate(tasks)
    ]
    done: list[Packed] = []
    documents: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    pace = console.Pace("sequences")
    with console.progress("prepare", len(tasks)) as advance, task_errors():
        for reference in references:
            packed, own = ray.get(reference)
            done.append(packed)
            for split in SPLITS:
                documents[split].append(own[split])
            sequences = sum(sum(file.sequences.values()) for file in done)
            advance(len(done), f"blocks, {sequences:,} sequences, {pace(sequences)}")
    return done, {split: len(np.unique(np.concatenate(found))) for split, found in documents.items()}


def _pack(blocks: list[list[PartFile]], corpus: Corpus, masking: Masking | None, store: Store) -> list[Packed]:
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
    done: list[Packed] = []
    pace = console.Pace("sequences")
    with console.progress("pack", len(references)) as advance, task_errors():
        for reference in references:
            done.append(ray.get(reference))
            sequences = sum(sum(packed.sequences.values()) for packed in done)
            advance(len(done), f"files, {sequences:,} sequences, {pace(sequences)}")
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
    packed: list[Packed], documents: dict[str, int], corpus: Corpus, store: Store
) -> tuple[dict[str, SplitSummary], list[ShardEntry]]:
    """Numbers the shards through the splits and has each written from the rows of the packed files it covers."""
    import ray

    task = ray.remote(num_cpus=1)(_write_shard)
    splits: dict[str, SplitSummary] = {}
    entries: list[ShardEntry] = []
    sequence_id = 0
    totals = {split: sum(file.sequences[split] for file in packed) for split in SPLITS}
    shards = sum(math.ceil(total / corpus.shard_sequences) for total in totals.values())
    with console.progress("cut", shards) as advance, task_errors():
        for split in SPLITS:
            starts = np.cumsum([0] + [file.sequences[split] for file in packed])
            total = totals[split]
            shard = len(entries)
            references: list[Any] = []
            for begin in range(0, total, corpus.shard_sequences):
                end = min(begin + corpus.shard_sequences, total)
                first = int(np.searchsorted(starts, begin, "right")) - 1
                rows = [
                    (packed[place].name, max(begin, int(starts[place])) - int(starts[place]), end - int(starts[place]))
                    for place in range(first, int(np.searchsorted(starts, end, "left")))
                ]
                references.append(task.remote(rows, split, corpus, store, shard + len(references), sequence_id + begin))
            unlabelled = 0
            for reference in references:
                entry, without = ray.get(reference)
                entries.append(entry)
                unlabelled += without
                advance(len(entries), "shards")
            splits[split] = SplitSummary(
                documents=documents[split],
                sequences=total,
                positions=sum(entry.positions for entry in entries[shard:]),
                first_shard=shard,
                end_shard=len(entries),
                unlabelled=unlabelled,
            )
            sequence_id += total
    return splits, entries


def _write_packed(
    names: list[str], own: dict[str, Span], corpus: Corpus, masking: Masking | None, store: Store
) -> Packed:
    """Ray task: the sequences that begin in the first file of parts, as one packed file."""
    name = names[0].removesuffix(".arrow") + ".packed.arrow"
    found = find_packed(store, name)
    if found is not None:
        return found
    parts = [parts_of(store, part_name) for part_name in names]
    sequences: dict[str, list[Sequence]] = {}
    left_out = 0
    for split in SPLITS:
        following = chain.from_iterable(file[split] for file in parts[1:])
        sequences[split] = list(pack(spanned(parts[0][split], following, own[split], corpus), corpus))
        if masking is not None:
            views = corpus.views if split == "train" else 1
            masked = [views_of(one, masking, corpus, views) for one in sequences[split]]
            left_out += sum(not own for own in masked)
            sequences[split] = [view for own in masked for view in own]
    return put_packed(store, name, sequences, left_out)


def _write_labelled(
    pieces: list[Piece],
    inputs: Inputs,
    tokenizer: tuple[str, str | None],
    corpus: Corpus,
    store: Store,
    name: str,
) -> tuple[Packed, dict[str, np.ndarray]]:
    """Ray task: the pieces' rows as one packed file, and the documents of each split."""
    found = find_packed(store, name)
    if found is not None:
        read = {split: read_packed(store, name, split, 0, count, False) for split, count in found.sequences.items()}
        return found, _documents_of(read)
    make_builtin(corpus)
    if inputs.width is None:
        inputs = replace(inputs, tokenizer=load_tokenizer(locate(*tokenizer, weights=False)))
    sequences = sequences_of(pieces, corpus, inputs)
    return put_packed(store, name, sequences), _documents_of(sequences)


def _documents_of(sequences: dict[str, list[Sequence]]) -> dict[str, np.ndarray]:
    """[documents] int64 of each split."""
    return {
        split: np.unique(np.concatenate([np.empty(0, np.int64), *(one.documents for one in own)]))
        for split, own in sequences.items()
    }


def _write_shard(
    covered: list[tuple[str, int, int]], split: str, corpus: Corpus, store: Store, shard: int, first_id: int
) -> tuple[ShardEntry, int]:
    """Ray task: rows [begin, end) of a split out of each named packed file, as one shard; how many positions of it have
    no label."""
    isolated = corpus.packing == "isolate"
    sequences = [one for name, begin, end in covered for one in read_packed(store, name, split, begin, end, isolated)]
    numbered = [replace(sequence, sequence_id=first_id + place) for place, sequence in enumerate(sequences)]
    table = pa.table(sequences_to_columns(numbered))
    unlabelled = sum(int((one.given_labels == NO_LABEL).sum()) for one in numbered if one.given_labels is not None)
    return put_shard(store, shard, table, sum(sequence.positions for sequence in numbered)), unlabelled


def _block_name(key: str, task: int) -> str:
    return f"{BLOCKS}/{key[:16]}-{task:06d}"


def _refuse_what_does_not_fit(corpus: Corpus, config: Any, model: str) -> None:
    refuse_other_task(config, model, corpus)
    bound, sequence_length = longest_sequence(config), corpus.sequence_length
    if bound is not None and sequence_length > bound:
        raise RequestError(
            f"corpus.sequence_length {sequence_length} is beyond the teacher's {bound} positions ({model})"
        )


def _refuse_empty(packed: list[Packed], corpus: Corpus) -> None:
    what = "sequence with a token to mask" if corpus.task == "masked_lm" else "sequence"
    for split, fraction in (
        ("train", 1.0),
        ("validation", corpus.validation_fraction),
        ("development", corpus.development_fraction),
    ):
        if fraction and not sum(file.sequences[split] for file in packed):
            raise RequestError(
                f"corpus.source {', '.join(corpus.sources)}: no {split} {what} came out of it; give more documents"
                + ("" if split == "train" else f" or raise corpus.{split}_fraction")
            )
