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
from tests.cache.golden import make

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", make.GOLDEN)
def test_this_version_reads_what_was_written(name: str) -> None:
    expected = np.load(GOLDEN / f"{name}.npz")
    opened = cache.open(str(GOLDEN / name))
    rows = [opened[index] for index in range(len(opened))]
    assert [row.sequence.sequence_id for row in rows] == expected["sequence_ids"].tolist()
    for field in ("input_ids", "loss_mask", "documents"):
        found = np.concatenate([getattr(row.sequence, field) for row in rows])
        np.testing.assert_array_equal(found, expected[field])
    for field in ("ids", "logits", "tail_odds", *(["log_p"] if "log_p" in expected else [])):
        found = np.concatenate([getattr(row.targets, field) for row in rows])
        assert found.dtype == expected[field].dtype
        np.testing.assert_array_equal(found, expected[field])
    assert verify(str(GOLDEN / name), 1).all_good


@pytest.mark.parametrize("name", make.GOLDEN)
def test_the_specification_is_enough_to_read_it(name: str, tmp_path: Path) -> None:
    """A fresh interpreter in another folder: pyarrow, zstandard and numpy."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", str(GOLDEN / "read.py"), name], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(np.load(GOLDEN / f"{name}.npz")["ids"]) > 10
