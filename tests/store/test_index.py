"""The shard index: columns that behave as a list of entries, and every rule held by all rows at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distributed_kd.errors import RequestError
from distributed_kd.store.digest import sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import (
    INDEX_NAME,
    SCHEMA,
    IndexReference,
    ShardEntry,
    ShardIndex,
    check_entry,
    put_index,
    read_index,
)

COUNT = 9000  # more than are made into entries at once
BAD = {
    "shard": [-1, 1 << 22, (1 << 63) - 1, -(1 << 63)],
    "rows": [-1, (1 << 31) + 1, (1 << 63) - 1],
    "positions": [-1, (1 << 40) + 1, -(1 << 63)],
    "bytes": [-1, (1 << 40) + 1, (1 << 63) - 1],
    "sha256": [
        "",
        "0" * 63,
        "0" * 65,
        "0" * 63 + "A",
        "0" * 64 + "\n",
        "\n" + "0" * 64,
        "0" * 63 + "٣",
        "../../etc/passwd",
    ],
}


def entries_of(count: int) -> list[ShardEntry]:
    rng = np.random.default_rng(count)
    return [
        ShardEntry(n, *(int(v) for v in rng.integers(0, 1 << 31, 3)), sha256=sha256(str(n).encode()))
        for n in range(count)
    ]


def put_rows(store: Store, entries: list[ShardEntry], batch: int) -> IndexReference:
    """Writes an index of these rows as they are, good or not, in record batches of `batch` rows."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist([vars(entry) for entry in entries], schema=SCHEMA), batch)
    data = sink.getvalue().to_pybytes()
    store.put(INDEX_NAME, data)
    return IndexReference(sha256(data), len(data))


def fault_of(entries: list[ShardEntry], where: str) -> str:
    """What is wrong with the first row that is not good, by the rule for one entry and in plain Python."""
    before = -1
    for entry in entries:
        try:
            check_entry(entry, where)
        except RequestError as error:
            return str(error)
        if entry.shard <= before:
            return f"{where} lists shard {entry.shard} after shard {before}; shards rise"
        before = entry.shard
    return ""


@pytest.mark.parametrize("count", [0, 1, COUNT])
def test_an_index_is_a_sequence_of_its_entries(tmp_path: Path, count: int) -> None:
    store, entries = Store(str(tmp_path)), entries_of(count)
    index = read_index(store, put_index(store, reversed(entries)))
    assert list(index) == entries
    assert [index[place] for place in range(count)] == entries
    assert (len(index), list(index[3:7]), list(index[-2:])) == (count, entries[3:7], entries[-2:])
    assert all(type(value) in (int, str) for entry in index[:1] for value in vars(entry).values())
    assert [int(index.rows.sum()), int(index.bytes.sum())] == [
        sum(e.rows for e in entries),
        sum(e.bytes for e in entries),
    ]
    assert index.is_numbered_through
    assert count == 0 or not ShardIndex.of([*entries[1:], replace(entries[0], shard=count)]).is_numbered_through
    with pytest.raises(IndexError):
        index[count]


@pytest.mark.parametrize(("column", "value"), [(column, value) for column, values in BAD.items() for value in values])
def test_one_bad_value_anywhere_is_named_as_that_of_one_entry(tmp_path: Path, column: str, value: Any) -> None:
    store, good = Store(str(tmp_path)), entries_of(20)
    for place in (0, 7, 8, 19):  # the first, the last of a record batch, the first of one, the last
        rows = [*good[:place], replace(good[place], **{column: value}), *good[place + 1 :]]
        with pytest.raises(RequestError) as caught:
            read_index(store, put_rows(store, rows, batch=8))
        assert str(caught.value) == fault_of(rows, f"{store.uri}/{INDEX_NAME}")
        assert str(place if column != "shard" else value)[:20] in str(caught.value)


@pytest.mark.parametrize(("place", "shard"), [(1, 0), (8, 7), (19, 2), (7, 9)])
def test_shards_that_do_not_rise_are_named(tmp_path: Path, place: int, shard: int) -> None:
    store, rows = Store(str(tmp_path)), entries_of(20)
    rows[place] = replace(rows[place], shard=shard)
    with pytest.raises(RequestError, match=r"lists shard \d+ after shard \d+; shards rise") as caught:
        read_index(store, put_rows(store, rows, batch=8))
    assert str(caught.value) == fault_of(rows, f"{store.uri}/{INDEX_NAME}")


def test_of_many_faults_the_first_is_named(tmp_path: Path) -> None:
    store, good = Store(str(tmp_path)), entries_of(300)
    rng = np.random.default_rng(0)
    for _ in range(40):
        rows = list(good)
        for place in rng.integers(0, len(rows), 3):
            column = list(BAD)[rng.integers(len(BAD))]
            rows[place] = replace(rows[place], **{column: BAD[column][rng.integers(len(BAD[column]))]})
        with pytest.raises(RequestError) as caught:
            read_index(store, put_rows(store, rows, batch=64))
        assert str(caught.value) == fault_of(rows, f"{store.uri}/{INDEX_NAME}")


def test_the_largest_values_are_good_and_their_sum_is_exact(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entries = [ShardEntry((1 << 22) - 2 + n, 1 << 31, 1 << 40, 1 << 40, "f" * 64) for n in range(2)]
    index = read_index(store, put_index(store, entries))
    assert list(index) == entries
    assert int(index.positions.sum()) * (1 << 21) == 1 << 62  # as many shards as there may be: still int64
