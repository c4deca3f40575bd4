"""Every codec through a shard: sequences with unscored positions, named tables, and refusals in one line."""

import numpy as np
import pyarrow as pa
import pytest

from distributed_kd.cache import codecs, shard
from distributed_kd.cache.manifest import put_tables, read_tables
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import Store

V, K = 50, 4


def make_rows(count=3, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(rng.integers(1, 30))
        mask = rng.random(length) < (0.6 if number else 0.0)  # the first sequence has no scored position
        sequence = Sequence(
            number, rng.integers(0, V, length).astype(np.int32), mask, np.array([number]), np.array([length], np.int32),
            isolated=False,
        )  # fmt: skip
        positions = int(mask.sum())
        ids = np.array([rng.permutation(V)[:K] for _ in range(positions)], np.int32).reshape(positions, K)
        logits = -np.cumsum(rng.exponential(1.0, (positions, K)), axis=1).astype(np.float32)
        logits -= logits[:, :1]
        odds = rng.normal(size=(positions, 1)).astype(np.float32)
        rows.append(Row(sequence, SoftTargets(ids, logits, odds, (1.0,))))
    return rows


def make_tables(codec, rows):
    if codec.build_tables is None:
        return None
    targets = SoftTargets.concatenate([row.targets for row in rows])
    tokens = np.concatenate([row.sequence.input_ids[row.sequence.loss_mask] for row in rows])
    return codec.build_tables(targets, tokens, V, 0)


def opened(data):
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


@pytest.mark.parametrize("name", ["plain-1", "compact-1"])
def test_a_shard_comes_back_and_its_parts_sum_to_its_bytes(name):
    rows = make_rows()
    tables = make_tables(codecs.find(name), rows)
    data, parts = shard.encode(rows, name, "f" * 64, 7, tables)
    assert data == shard.encode(rows, name, "f" * 64, 7, tables)[0]
    assert sum(parts.values()) == len(data) and parts["ids"] > 0 and parts["levels"] > 0 and parts["tail"] > 0
    found = shard.decode(opened(data), 7, "f" * 64, False, (1.0,), tables)
    for row, other in zip(rows, found, strict=True):
        assert np.array_equal(row.sequence.input_ids, other.sequence.input_ids)
        assert np.array_equal(np.sort(row.targets.ids), np.sort(other.targets.ids))
        assert np.abs(row.targets.tail_odds - other.targets.tail_odds).max(initial=0) < 1e-3


def test_other_tables_and_damage_are_refused_in_one_line():
    rows = make_rows()
    codec = codecs.find("compact-1")
    tables, others = make_tables(codec, rows), make_tables(codec, make_rows(5, seed=1))
    data, _ = shard.encode(rows, "compact-1", "f" * 64, 7, tables)
    for wrong in (others, None):
        with pytest.raises(RequestError, match="code tables"):
            shard.decode(opened(data), 7, "f" * 64, False, (1.0,), wrong)
    table = opened(data)
    place = table.column_names.index("ids")
    bad = table.set_column(place, "ids", pa.array([b"12345678"] * table.num_rows, pa.binary()))
    with pytest.raises(RequestError, match="shard 7 is damaged: the ids of sequence 0"):
        shard.decode(bad, 7, "f" * 64, False, (1.0,), tables)
    with pytest.raises(RequestError, match="damaged"):
        shard.decode(table.drop_columns("levels"), 7, "f" * 64, False, (1.0,), tables)
    with pytest.raises(RequestError, match="cannot be encoded"):
        shard.encode(rows, "compact-1", "f" * 64, 7, None)


def test_tables_are_checked_when_read(tmp_path):
    store = Store(str(tmp_path))
    reference = put_tables(store, b"some tables")
    assert read_tables(store, reference) == b"some tables"
    assert read_tables(store, None) is None
    (tmp_path / "tables.bin").write_bytes(b"some tablex")
    with pytest.raises(RequestError, match="damaged"):
        read_tables(store, reference)
    (tmp_path / "tables.bin").unlink()
    with pytest.raises(RequestError, match="missing"):
        read_tables(store, reference)
