"""What a codec hands to the shard writer."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from distributed_kd.cache.soft_targets import SoftTargets


@dataclass(frozen=True)
class Encoded:
    """Columns with one row a sequence, and which part of the bytes each belongs to.

    `parts` maps a column name to `levels`, `ids` or `tail`, for the accounting that `dkd inspect` prints.
    """

    columns: dict[str, pa.Array]
    parts: dict[str, str]


def refuse_log_p(targets: SoftTargets) -> None:
    """For a codec that keeps one set of logits. Raises `ValueError` for targets that have one for each temperature."""
    if targets.log_p is not None:
        raise ValueError("log-probabilities that are not those of one set of logits are not kept; plain-1 keeps them")
