"""How well the order of training is shuffled, beside what a shuffle buffer or shuffled shards alone would give.

    python benchmarks/shuffle.py [--sequences 100000] [--shard 256] [--batch 256] [--epochs 20] [--json]

`correlation` is Spearman's, between the place of a sequence in the cache and in training: its mean over the epochs,
then the largest size of one; chance alone gives a standard deviation of 1 / sqrt(sequences - 1). `between` is the
largest of an epoch and the next. `neighbours` is the share of sequences trained on right after one that is stored next
to them, `same shard` of those trained on right after one of their own shard, and `shards a batch` how many different
ones a batch is of. `chance` is what a uniformly random order gives, by numpy's generator, whose seed is the epoch.
`ms` is the processor's time for an epoch's order.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from distributed_kd.student.order import GlobalOrder

Order = Callable[[int], np.ndarray]  # epoch -> [sequences] the stored places, as they are trained on


def buffered(sequences: int, held: int) -> Order:
    """A random one of the `held` sequences that were read last is trained on and replaced by the next in the cache."""

    def order(epoch: int) -> np.ndarray:
        rng = np.random.default_rng(epoch)
        buffer, trained = list(range(held)), []
        for place, drawn in zip(range(held, sequences), rng.integers(0, held, sequences - held).tolist(), strict=True):
            trained.append(buffer[drawn])
            buffer[drawn] = place
        return np.concatenate([trained, rng.permutation(buffer)]).astype(np.int64)

    return order


def shards_shuffled(sequences: int, shard: int) -> Order:
    """Whole shards in a random order, each from its first sequence to its last."""

    def order(epoch: int) -> np.ndarray:
        shards = np.split(np.arange(sequences), range(shard, sequences, shard))
        return np.concatenate([shards[one] for one in np.random.default_rng(epoch).permutation(len(shards))])

    return order


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Of two permutations: between the places of a sequence in each."""
    return float(np.corrcoef(np.argsort(one), np.argsort(other))[0, 1])


def row_of(name: str, order: Order, epochs: int, shard: int, batch: int) -> dict[str, Any]:
    begun = time.process_time()
    orders = [order(epoch) for epoch in range(epochs)]
    seconds = (time.process_time() - begun) / epochs
    stored = np.arange(len(orders[0]))
    correlations = [spearman(stored, one) for one in orders]
    between = [spearman(one, other) for one, other in pairwise(orders)]
    batches = [one[: len(one) // batch * batch].reshape(-1, batch) // shard for one in orders]
    return {
        "name": name,
        "correlation": float(np.mean(correlations)),
        "correlation_most": float(np.abs(correlations).max()),
        "between_epochs_most": float(np.abs(between).max()),
        "neighbours": float(np.mean([(np.abs(np.diff(one)) == 1).mean() for one in orders])),
        "same_shard": float(np.mean([(np.diff(one // shard) == 0).mean() for one in orders])),
        "shards_a_batch": float(np.mean([len(np.unique(one)) for epoch in batches for one in epoch])),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sequences", type=int, default=100_000)
    parser.add_argument("--shard", type=int, default=256, help="sequences of a shard")
    parser.add_argument("--batch", type=int, default=256, help="sequences of a global batch")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    count = options.sequences
    rows = np.diff(np.append(np.arange(0, count, options.shard), count))
    orders: dict[str, Order] = {
        "this": GlobalOrder("0" * 64, 0, rows, options.batch).epoch,
        "chance": lambda epoch: np.random.default_rng(epoch).permutation(count),
        **{f"buffer of {held}": buffered(count, held) for held in (1000, 10_000) if held < count},
        "shards shuffled": shards_shuffled(count, options.shard),
    }
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "sequences": count, "shard": options.shard, "batch": options.batch, "epochs": options.epochs,
        "standard_deviation_by_chance": (count - 1) ** -0.5,
        "rows": [row_of(name, order, options.epochs, options.shard, options.batch) for name, order in orders.items()],
    }  # fmt: skip
    if options.json:
        print(json.dumps(report))
        return
    print(f"{report['machine']}; {', '.join(f'{name} {v}' for name, v in report['versions'].items())}")
    print(f"{count:,} sequences, {options.epochs} epochs; by chance a correlation is 0 +- {(count - 1) ** -0.5:.5f}")
    print(
        f"{'order':>16} {'correlation':>12} {'most':>9} {'between':>9} {'neighbours':>11} {'same shard':>11}"
        f" {'shards a batch':>15} {'ms':>7}"
    )
    for row in report["rows"]:
        print(
            f"{row['name']:>16} {row['correlation']:12.5f} {row['correlation_most']:9.5f}"
            f" {row['between_epochs_most']:9.5f} {row['neighbours']:11.6f} {row['same_shard']:11.5f}"
            f" {row['shards_a_batch']:15.1f} {1e3 * row['seconds']:7.1f}"
        )


if __name__ == "__main__":
    main()
