"""Handwritten digits: the 1,797 images of 8 x 8 that scikit-learn carries (Alpaydin and Kaynak, 1998, test set).

Columns: `image`, 64 numbers from 0 to 1, row by row; `label`, the digit; `document`, the image's number.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distributed_kd.corpus.builtin.packaged import CLASSICS, packaged_file

VERSION = 1
EXTRA, PACKAGES = "classics", ("sklearn",)
_FILE = "package:sklearn/datasets/data/digits.csv.gz"
_LARGEST = 16.0


def write(folder: Path) -> None:
    """`digits.parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.loadtxt(packaged_file(_FILE, "digits", "scikit-learn", CLASSICS), delimiter=",")
    table = pa.table(
        {
            "image": pa.array(list((rows[:, :-1] / _LARGEST).astype(np.float32)), pa.list_(pa.float32())),
            "label": pa.array(rows[:, -1].astype(np.int32)),
            "document": pa.array(np.arange(len(rows))),
        }
    )
    pq.write_table(table, folder / "digits.parquet")
