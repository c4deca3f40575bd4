"""dkd export: plain Parquet that says what the cache says, whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from distributed_kd import cache
from distributed_kd.cache.export import export
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import shard_name
from tests.cache.caches import make_cache
from tests.commands import dkd


@pytest.mark.parametrize("codec", ["plain-1", "compact-1"])
def test_a_row_a_position_with_the_caches_numbers(tmp_path: Path, codec: str) -> None:
    store = Store(str(tmp_path / "cache"))
    make_cache(store, codec)
    opened = cache.open(store)
    out = tmp_path / "out.parquet"
    done = export(store, str(out))
    assert (done.rows, done.bytes) == (sum(len(row.targets) for row in opened), out.stat().st_size)
    table = pq.read_table(out)
    assert table.schema.metadata[b"dkd.fingerprint"].decode() == opened.manifest.fingerprint
    assert pq.ParquetFile(out).num_row_groups == 3
    found = iter(table.to_pylist())
    for row in opened:
        sequence, targets = row.sequence, row.targets
        by_temperature = {t: targets.log_probabilities(t) for t in (1.0, 2.0)}
        for place, position in enumerate(np.flatnonzero(sequence.loss_mask)):
            one = next(found)
            assert one["sequence_id"] == sequence.sequence_id
            assert one["position"] == position
            assert one["document"] == sequence.documents[0 if position < 2 else 1]
            assert one["input_id"] == sequence.input_ids[position]
            assert one["label"] == sequence.input_ids[position + 1]
            kept = targets.ids[place] >= 0
            assert one["ids"] == targets.ids[place][kept].tolist()
            for temperature, name in ((1.0, "T1"), (2.0, "T2")):
                log_p, log_tail = by_temperature[temperature]
                assert one[f"log_probabilities_{name}"] == log_p[place][kept].tolist()
                assert one[f"log_tail_{name}"] == log_tail[place]
                total = np.exp(one[f"log_probabilities_{name}"]).sum() + np.exp(one[f"log_tail_{name}"])
                assert total == pytest.approx(1.0, abs=1e-5)
    assert next(found, None) is None


def test_a_bad_shard_leaves_no_file_and_the_old_one_as_it_was(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "cache"))
    make_cache(store, "plain-1")
    store.put(shard_name(2), b"nothing")
    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "new"):
        with pytest.raises(RequestError, match=r"00000002\.arrow is damaged"):
            export(store, str(tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "old"]
    assert (tmp_path / "old").read_bytes() == b"old"
    for out, kind in (("x", "csv"), ("nowhere/x", "parquet"), (".", "parquet"), ("s3://b/x", "parquet")):
        with pytest.raises(RequestError, match="--"):
            export(store, str(tmp_path / out) if "://" not in out else out, kind)


def test_the_command(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "cache"))
    rows = make_cache(store, "plain-1")
    done = dkd("export", store.uri, "--out", tmp_path / "x.parquet", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == sum(len(row.targets) for row in rows)
