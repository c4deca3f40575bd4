"""Makes the golden caches: python -m tests.cache.golden.make. Once for a format: what it made is never made again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from distributed_kd import cache
from distributed_kd.store.filesystem import Store
from tests.cache.caches import make_cache

FOLDER = Path(__file__).parent


def main() -> None:
    for codec in ("plain-1", "compact-1"):
        store = Store(str(FOLDER / codec))
        make_cache(store, codec, shards=2, rows=3, k=4)
        shutil.rmtree(FOLDER / codec / "receipts")
        rows = next(iter(cache.open(store).batches(100)))
        np.savez_compressed(
            FOLDER / f"{codec}.npz",
            sequence_ids=np.array([row.sequence.sequence_id for row in rows]),
            lengths=np.array([len(row.sequence.input_ids) for row in rows]),
            input_ids=np.concatenate([row.sequence.input_ids for row in rows]),
            loss_mask=np.concatenate([row.sequence.loss_mask for row in rows]),
            documents=np.concatenate([row.sequence.documents for row in rows]),
            ids=np.concatenate([row.targets.ids for row in rows]),
            logits=np.concatenate([row.targets.logits for row in rows]),
            tail_odds=np.concatenate([row.targets.tail_odds for row in rows]),
        )


if __name__ == "__main__":
    main()
