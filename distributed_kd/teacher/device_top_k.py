"""`targets.top_k` for GPUs: the largest ids by way of the largest of each few, and the tail in one pass of a kernel.

torch.topk goes over whole rows as often as a number has digits, and the tail's logsumexp takes eight passes more, which
a fast teacher waits for. The k largest of a row are in the k blocks whose largest are the k largest, so that only the
blocks' maxima and those blocks' ids are looked through. Nothing is approximate.

Shapes: n positions of a chunk, V vocabulary, K kept ids, G temperatures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_kd.kernels.kept_and_rest import kept_and_rest

_BLOCK = 128  # ids whose largest is found first; of 16, 32, 64 and 128 the fastest on an H200 at V = 49,152, K = 64


def largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """[n, V] to (values, ids) [n, K] of the k largest, falling, as torch.topk has them but for the order of equals."""
    n, vocabulary = logits.shape
    blocks = vocabulary // _BLOCK
    if blocks < 2 * k:
        return torch.topk(logits, k, dim=1)
    whole = blocks * _BLOCK
    maxima = logits[:, :whole].unflatten(1, (blocks, _BLOCK)).amax(dim=2)
    chosen = torch.topk(maxima, k, dim=1, sorted=False).indices
    places = chosen[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=logits.device)
    rest = torch.arange(whole, vocabulary, device=logits.device).expand(n, -1)  # the last ones are no whole block
    places = torch.cat([places.flatten(1), rest], dim=1)
    values, found = torch.topk(logits.gather(1, places), k, dim=1)
    return values, places.gather(1, found)


def log_rests(logits: Tensor, ids: Tensor, top: Tensor, temperatures: tuple[float, ...]) -> tuple[Tensor, list[Tensor]]:
    """Logsumexp of (z - top) / T over the ids that are not in `ids`: [n] at T = 1, and [n] at each temperature.

    ids [n, K], top [n] the row's largest z. In logits [n, V] the ids' places are -inf afterwards.
    """
    found = [
        kept_and_rest(logits, ids if place == 0 else ids[:, :0], temperature)
        for place, temperature in enumerate(temperatures)
    ]
    rests = [one.log_rest - top / temperature for one, temperature in zip(found, temperatures, strict=True)]
    return found[0].log_rest_at_one - top, rests
