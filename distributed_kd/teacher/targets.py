"""Choosing what to keep of a teacher's distribution: one function for each target method.

Shapes: n positions of a chunk, V vocabulary, K kept ids, G temperatures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.recipe import Targets


def choose(logits: Tensor, targets: Targets) -> SoftTargets:
    """[n, V] float32 logits, which are overwritten, to the soft targets of the recipe's method."""
    return top_k(logits, targets.k, tuple(targets.temperatures))


def top_k(logits: Tensor, k: int, temperatures: tuple[float, ...]) -> SoftTargets:
    """The k most probable ids, and the tail's odds at each temperature. `logits` [n, V] is overwritten.

    The tail is a logsumexp over the ids that are not kept; 1 - mass would cancel.
    """
    values, ids = torch.topk(logits, k, dim=1)
    relative = values - values[:, :1]
    rest = logits.sub_(values[:, :1]).scatter_(1, ids, -torch.inf)
    odds = [
        torch.logsumexp(rest / temperature if temperature != 1.0 else rest, dim=1)
        - torch.logsumexp(relative / temperature, dim=1)
        for temperature in temperatures
    ]
    return SoftTargets(
        ids.to(torch.int32).cpu().numpy(),
        relative.cpu().numpy(),
        torch.stack(odds, dim=1).cpu().numpy(),
        temperatures,
    )
