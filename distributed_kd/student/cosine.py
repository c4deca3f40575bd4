"""The third term of DistilBERT's loss (Sanh et al., 2019): the student's hidden states in the teacher's directions.

Theirs is over every token of a sequence that is no padding; here it is over the scored positions, which alone a cache
keeps anything for. Both sides are of one width: there is no projection between them.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity


def cosine_loss(own: Tensor, teacher: Tensor, weight: Tensor | None) -> Tensor:
    """The sum over N positions of 1 - cos, each times its weight [N], in float32 at least. own and teacher: [N, D]."""
    if own.element_size() < 4:
        own = own.float()
    distance = 1.0 - cosine_similarity(own, teacher.to(own.dtype), dim=1)
    return (distance if weight is None else distance * weight).sum()
