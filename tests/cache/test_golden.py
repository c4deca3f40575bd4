"""The golden caches, written once and committed: every later version reads the same numbers from them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distributed_kd import cache
from distributed_kd.cache.verify import verify

GOLDEN = Path(__file__).parent / "golden"
CODECS = ["plain-1", "compact-1"]


@pytest.mark.parametrize("codec", CODECS)
def test_this_version_reads_what_was_written(codec: str) -> None:
    expected = np.load(GOLDEN / f"{codec}.npz")
    opened = cache.open(str(GOLDEN / codec))
    rows = [opened[index] for index in range(len(opened))]
    assert [row.sequence.sequence_id for row in rows] == expected["sequence_ids"].tolist()
    for name in ("input_ids", "loss_mask", "documents"):
        found = np.concatenate([getattr(row.sequence, name) for row in rows])
        np.testing.assert_array_equal(found, expected[name])
    for name in ("ids", "logits", "tail_odds"):
        found = np.concatenate([getattr(row.targets, name) for row in rows])
        assert found.dtype == expected[name].dtype
        np.testing.assert_array_equal(found, expected[name])
    assert verify(str(GOLDEN / codec), 1).all_good


@pytest.mark.parametrize("codec", CODECS)
def test_the_specification_is_enough_to_read_it(codec: str, tmp_path: Path) -> None:
    """A fresh interpreter in another folder: pyarrow, zstandard and numpy."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", str(GOLDEN / "read.py"), codec], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(np.load(GOLDEN / f"{codec}.npz")["ids"]) > 10
