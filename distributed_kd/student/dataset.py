"""A cache for loaders and trainers that are not ours: sequences by index, and batches of plain tensors.

`dkd train` reads through `stream.py`, which knows what is needed next and reads it ahead. A loader asks for one
sequence after the other, so the shards that it has asked for last are held. Where it asks in the order of `order.py`,
a shard is read once an epoch; a random order over more shards than are held reads one for nearly every sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distributed_kd.cache.reader import LogitCache
from distributed_kd.cache.reader import open as open_cache
from distributed_kd.cache.shard import Row
from distributed_kd.student.stream import to_micro_batch

_SHARDS_HELD = 32  # as many as `GlobalOrder` has lanes at most


class CacheDataset(Dataset[Row]):
    """Item `i` is sequence `i` of the finished cache in a folder or bucket, with its targets.

    shards_held: shards in memory at most. Raises `RequestError` where there is no cache, or its bytes are not right.
    """

    def __init__(self, cache: LogitCache | str, shards_held: int = _SHARDS_HELD) -> None:
        self.cache = open_cache(cache) if isinstance(cache, str) else cache
        self.shards_held = shards_held
        self._table = lru_cache(shards_held)(self.cache.table)

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        place = int(self.cache.entries.places_of(index))
        return self.cache.rows(place, self._table(place), np.array([index]))[0]

    def __reduce__(self) -> tuple[type[CacheDataset], tuple[str, int]]:
        """A loader's worker opens the cache itself."""
        return CacheDataset, (self.cache.store.uri, self.shards_held)


@dataclass(frozen=True)
class Collator:
    """B rows to the batch that `distillation_loss` takes, of soft targets at one temperature.

    | key | shape | what |
    |---|---|---|
    | `input_ids`, `position_ids`, `attention_mask` | [B, S] int64 | as models take them, padded on the right |
    | `features` | [B, S, F] float32 | where positions are no tokens, and only there |
    | `labels` | [B, S] int64 | as transformers' own losses take them, -100 where there is no loss |
    | `loss_mask` | [B, S] bool | the N positions that carry loss |
    | `target_labels` | [N] int64 | what each of them is to predict |
    | `target_ids` | [N, K] int64 | kept ids; -1 where a position keeps fewer |
    | `target_log_p` | [N, K] float32 | the teacher's log-probabilities at `temperature` |
    | `target_log_p_tail` | [N] float32 | of all other ids together |
    | `temperature` | [] float32 | |

    Raises `RequestError` for a temperature that is not in the cache.
    """

    temperature: float = 1.0

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        batch = to_micro_batch(rows, [-1] * len(rows), self.temperature)
        labels = torch.full_like(batch.input_ids, -100)
        if rows[0].sequence.given_labels is None:
            labels[:, 1:][batch.loss_mask[:, :-1]] = batch.targets.labels  # position t predicts token t + 1
        else:
            labels[batch.loss_mask] = batch.targets.labels
        features = {} if batch.features is None else {"features": batch.features}
        return features | {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "attention_mask": batch.present.long(),
            "labels": labels,
            "loss_mask": batch.loss_mask,
            "target_labels": batch.targets.labels,
            "target_ids": batch.targets.ids,
            "target_log_p": batch.targets.log_p,
            "target_log_p_tail": batch.targets.log_p_tail,
            "temperature": torch.tensor(self.temperature),
        }
