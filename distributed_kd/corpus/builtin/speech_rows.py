"""Utterances as Parquet: a file for each view, a row an utterance, the same bytes every time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distributed_kd.corpus.builtin.filterbanks import BANDS
from distributed_kd.corpus.builtin.prompts import Prompt
from distributed_kd.corpus.builtin.speech_align import CLASSES
from distributed_kd.corpus.builtin.speech_views import VIEWS, features_of, labels_in

_FIELDS = {
    "utterance": pa.string(),
    "document": pa.string(),
    "view": pa.int32(),
    "features": pa.list_(pa.list_(pa.float32())),
    "labels": pa.list_(pa.int32()),
}
_GROUP = 32  # rows


@dataclass(frozen=True)
class Utterance:
    name: str
    document: str
    views: list[tuple[np.ndarray, np.ndarray]]  # features [T, 40] float32 and labels [T] int32 of each


def utterance(name: str, words: list[str], samples: np.ndarray, labels: np.ndarray) -> Utterance:
    """All views of `samples` ([n] int16), whose frames have the `labels` [T]."""
    views = [(features_of(samples, view, name), labels_in(labels, len(samples), view)) for view in VIEWS]
    return Utterance(name, " ".join(words), views)


def write_rows(folder: Path, prompts: list[Prompt], row: Callable[[Prompt], Utterance | None]) -> None:
    """`view-I.parquet` for each view, of what `row` makes of the prompts, in their order; None is left out.

    The schema's metadata has `classes`, the names of the labels; the file's has `left_out`, the names of prompts that
    gave no row. `row` is called in as many processes as there are processors, and travels there: no lambda.
    """
    schema = pa.schema(list(_FIELDS.items()), {"classes": json.dumps(CLASSES)})
    left_out: list[str] = []
    with ExitStack() as stack:
        files = [stack.enter_context(_file(folder / f"view-{view}.parquet", schema)) for view in range(len(VIEWS))]
        jobs = len(os.sched_getaffinity(0))
        # Not forked, since the parent may have threads.
        pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
        stack.callback(pool.shutdown, cancel_futures=True)
        made = zip(prompts, pool.map(row, prompts), strict=True)
        while group := list(islice(made, _GROUP)):
            left_out += [prompt.name for prompt, one in group if one is None]
            rows = [one for _, one in group if one is not None]
            for view, file in enumerate(files):
                file.write_table(_table(rows, view, schema))
        for file in files:
            file.add_key_value_metadata({"left_out": json.dumps(left_out)})


def _file(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    bytewise = ["features.list.element.list.element"]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, use_byte_stream_split=bytewise)


def _table(rows: list[Utterance], view: int, schema: pa.Schema) -> pa.Table:
    lengths = [len(row.views[view][1]) for row in rows]
    offsets = np.cumsum([0, *lengths]).astype(np.int32)
    values = np.concatenate([row.views[view][0] for row in rows]).reshape(-1)
    frames = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, BANDS, dtype=np.int32), values)
    columns = {
        "utterance": [row.name for row in rows],
        "document": [row.document for row in rows],
        "view": pa.array([view] * len(rows), pa.int32()),
        "features": pa.ListArray.from_arrays(offsets, frames),
        "labels": pa.ListArray.from_arrays(offsets, np.concatenate([row.views[view][1] for row in rows])),
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)
