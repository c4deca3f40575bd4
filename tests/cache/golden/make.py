"""Makes the golden caches: python -m tests.cache.golden.make. Once for a format: what it made is never made again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from distributed_kd import cache
from distributed_kd.store.filesystem import Store
from tests.cache.caches import make_cache

FOLDER = Path(__file__).parent
# Each golden cache's codec and target method; `weighted` is of ids drawn at another temperature.
GOLDEN = {
    "plain-1": ("plain-1", "top_k"),
    "compact-1": ("compact-1", "top_k"),
    "plain-1-top-p": ("plain-1", "top_p"),
    "compact-1-top-p": ("compact-1", "top_p"),
    "plain-1-sample": ("plain-1", "sample"),
    "compact-1-sample": ("compact-1", "sample"),
    "plain-1-weighted": ("plain-1", "weighted"),
    "plain-1-full": ("plain-1", "full"),
    "dense-1-full": ("dense-1", "full"),
}


def main() -> None:
    for name, (codec, method) in GOLDEN.items():
        store = Store(str(FOLDER / name))
        if store.exists("manifest.json"):
            continue
        make_cache(store, codec, shards=2, rows=3, k=4, method=method)
        shutil.rmtree(FOLDER / name / "receipts")
        rows = next(iter(cache.open(store).batches(100)))
        np.savez_compressed(
            FOLDER / f"{name}.npz",
            sequence_ids=np.array([row.sequence.sequence_id for row in rows]),
            lengths=np.array([len(row.sequence.input_ids) for row in rows]),
            input_ids=np.concatenate([row.sequence.input_ids for row in rows]),
            loss_mask=np.concatenate([row.sequence.loss_mask for row in rows]),
            documents=np.concatenate([row.sequence.documents for row in rows]),
            ids=np.concatenate([row.targets.ids for row in rows]),
            logits=np.concatenate([row.targets.logits for row in rows]),
            tail_odds=np.concatenate([row.targets.tail_odds for row in rows]),
            **({} if method != "weighted" else {"log_p": np.concatenate([row.targets.log_p for row in rows])}),
        )


if __name__ == "__main__":
    main()
