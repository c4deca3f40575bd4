"""How far the student's distribution q is from the teacher's p, over K + 1 outcomes: the kept ids, and the rest as one.

The tail makes p and q whole, so no divergence can be negative, as one over kept ids alone can. Each function returns
its values and its slopes by log q, from which `objective.py` forms the gradient in the logits:

    forward_kl       sum p log(p / q) - sum p + sum q; sum p is 1 but for estimates, in whose mean over draws it is
    reverse_kl       sum q log(q / p)
    jsd              beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q    (Agarwal et al., ICLR 2024)
    skewed_kl        KL(p || skew p + (1 - skew) q)                                        (Ko et al., ICML 2024)
    total_variation  half of sum |p - q|

Only forward_kl's gradient is linear in p: with drawn ids, whose p is an estimate, it alone is right in the mean.

Shapes: n positions, K kept ids; the last of the K + 1 columns is the tail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# An outcome that the teacher excludes altogether costs reverse_kl this much and not infinity: e^-60 is 1e-26.
_LOWEST_LOG_P = -60.0
_TINY = torch.finfo(torch.float32).tiny


class Value(NamedTuple):
    value: Tensor  # [n], not negative
    slope: Tensor  # [n, K + 1] its derivative by log q of each outcome


Divergence = Callable[[Tensor, Tensor, Tensor], Value]
"""(log_p [n, K + 1], log_q [n, K + 1], counts [n, K + 1] bool: which outcomes there are) -> value and slope."""


def find(name: str, beta: float = 0.5, skew: float = 0.1) -> Divergence:
    """The divergence of a recipe's `objective`. `beta` is of jsd, `skew` of skewed_kl."""
    if name == "jsd":
        return lambda log_p, log_q, counts: jsd(log_p, log_q, counts, beta)
    if name == "skewed_kl":
        return lambda log_p, log_q, counts: skewed_kl(log_p, log_q, counts, skew)
    return {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "total_variation": total_variation}[name]


def forward_kl(log_p: Tensor, log_q: Tensor, counts: Tensor) -> Value:
    p = log_p.exp()
    value = over_outcomes(torch.where(counts & (p > 0.0), p * (log_p - log_q), 0.0))
    return Value(value + (1.0 - over_outcomes(p)), -p)


def reverse_kl(log_p: Tensor, log_q: Tensor, counts: Tensor) -> Value:
    q = log_q.exp()
    each = torch.where(counts & (q > 0.0), log_q - log_p.clamp(min=_LOWEST_LOG_P), 0.0)
    return Value(over_outcomes(q * each), q * (each + 1.0))


def jsd(log_p: Tensor, log_q: Tensor, counts: Tensor, beta: float) -> Value:
    p, q = log_p.exp(), log_q.exp()
    log_m = (beta * p + (1.0 - beta) * q).clamp(min=_TINY).log()
    from_p = torch.where(counts & (p > 0.0), p * (log_p - log_m), 0.0)
    from_q = torch.where(counts & (q > 0.0), q * (log_q - log_m), 0.0)
    return Value(over_outcomes(beta * from_p + (1.0 - beta) * from_q), (1.0 - beta) * from_q)


def skewed_kl(log_p: Tensor, log_q: Tensor, counts: Tensor, skew: float) -> Value:
    p, q = log_p.exp(), log_q.exp()
    m = (skew * p + (1.0 - skew) * q).clamp(min=_TINY)
    has = counts & (p > 0.0)
    return Value(
        over_outcomes(torch.where(has, p * (log_p - m.log()), 0.0)),
        torch.where(has, (skew - 1.0) * p * q / m, 0.0),
    )


def total_variation(log_p: Tensor, log_q: Tensor, counts: Tensor) -> Value:
    p, q = log_p.exp(), log_q.exp()
    return Value(0.5 * over_outcomes((p - q).abs()), 0.5 * q * torch.sign(q - p))


def over_outcomes(outcomes: Tensor) -> Tensor:
    """[n, K + 1] summed by row -> [n]; the tail last, which may be as large as all others together."""
    return outcomes[:, :-1].sum(dim=1) + outcomes[:, -1]
