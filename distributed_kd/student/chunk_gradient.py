"""One chunk of positions: the loss's gradient in the logits, in as many passes over them as cross-entropy takes.

With E_j = exp(z_j - m), m the largest scaled logit z = logits / T that is not kept, L_t and L the logsumexps of z over
ids not kept and over all, s_k and s_t the divergence's slopes by log q of a kept id and of the tail, and S their sum,
the divergence's gradient in z is
    not kept:  E_j * (s_t * exp(m - L_t) - S * exp(m - L))
    kept:      s_k - S * q_k
For forward_kl, s = -p. At T = 1 the hard labels' softmax is the same E_j.

Shapes: n positions of the chunk, D hidden size, V rows of the head, K kept ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from distributed_kd.models.parts import Head
from distributed_kd.student.divergence import Divergence, over_outcomes
from distributed_kd.student.position_targets import PositionTargets

_ROWS = 16  # of a second tensor beside the chunk's


@dataclass(frozen=True)
class Form:
    """(1 - alpha) * CE + alpha * T^2 * divergence. alpha = 1 never reads the labels, alpha = 0 never the targets.

    A position without a label has no CE.
    """

    temperature: float
    alpha: float
    divergence: Divergence

    @property
    def soft(self) -> bool:
        return self.alpha > 0.0

    @property
    def hard(self) -> bool:
        return self.alpha < 1.0

    @property
    def one_softmax(self) -> bool:
        """Whether the labels' softmax is the divergence's."""
        return self.temperature == 1.0

    def weight_of_labels(self, labels: Tensor) -> Tensor:
        """[n] float32: 1 - alpha, and 0 where there is no label."""
        return (labels >= 0).float() * (1.0 - self.alpha)


class Chunk(NamedTuple):
    grad: Tensor  # [n, V] of the loss in h W^T + bias, in the dtype of the hidden states
    cross_entropy: Tensor  # [n], zero at alpha = 1
    divergence: Tensor  # [n], zero at alpha = 0
    tail: Tensor  # [n] the student's mass on ids that are not kept, at the form's temperature; zero at alpha = 0


ChunkGradient = Callable[[Tensor, Head, PositionTargets, Form], Chunk]
"""(hidden states [n, D], head, targets of the n positions, form) -> Chunk"""


def chunk_gradient(hidden: Tensor, head: Head, targets: PositionTargets, form: Form) -> Chunk:
    logits = head.logits(hidden)
    slope = None if head.softcap is None else 1.0 - (logits / head.softcap) ** 2
    of_logits = _by_rows if form.soft and not form.one_softmax else logit_gradient
    chunk = of_logits(logits, targets, form)
    grad = chunk.grad
    if slope is not None:
        grad *= slope
    if head.scale != 1.0:
        grad *= head.scale
    return chunk._replace(grad=grad.to(hidden.dtype))


def _by_rows(logits: Tensor, targets: PositionTargets, form: Form) -> Chunk:
    """`logit_gradient` a few rows at a time: two softmaxes need a second tensor, which then is small."""
    found = []
    for begin in range(0, len(logits), _ROWS):
        rows = slice(begin, begin + _ROWS)
        part = logit_gradient(logits[rows], targets.rows(rows.start, rows.stop), form)
        logits[rows] = part.grad
        found.append(part[1:])
    return Chunk(logits, *(torch.cat(parts) for parts in zip(*found, strict=True)))


def logit_gradient(logits: Tensor, targets: PositionTargets, form: Form) -> Chunk:
    """logits [n, V] float32, which the gradient overwrites."""
    if not form.soft:
        return _of_labels(logits, targets.labels)
    of_labels = form.weight_of_labels(targets.labels) if form.hard else None
    if of_labels is not None:
        labels = targets.labels.clamp(min=0)[:, None]
        at_label = logits.gather(1, labels).squeeze(1)
    if form.one_softmax:
        soft = _SoftPass(logits, targets, form.divergence)
        grad = soft.gradient(form.alpha, with_softmax=0.0 if of_labels is None else of_labels)
        log_total = soft.terms.log_total
    else:
        soft = _SoftPass(logits / form.temperature, targets, form.divergence)
        # alpha T^2 from the loss, 1/T from the chain rule.
        grad = soft.gradient(form.alpha * form.temperature, with_softmax=0.0)
        if of_labels is not None:
            log_total = logits.logsumexp(dim=1)
            grad += logits.sub_(log_total[:, None]).exp_().mul_(of_labels[:, None])
    if of_labels is None:
        return Chunk(grad, torch.zeros_like(soft.terms.value), soft.terms.value, soft.terms.tail)
    grad.scatter_add_(1, labels, -of_labels[:, None])
    cross_entropy = torch.where(targets.labels >= 0, log_total - at_label, 0.0)
    return Chunk(grad, cross_entropy, soft.terms.value, soft.terms.tail)


def _of_labels(logits: Tensor, labels: Tensor) -> Chunk:
    has_label = labels >= 0
    places = labels.clamp(min=0)[:, None]
    at_label = logits.gather(1, places).squeeze(1)
    largest = logits.amax(dim=1)
    grad = logits.sub_(largest[:, None]).exp_()
    total = grad.sum(dim=1)
    grad.mul_(torch.where(has_label, total.reciprocal(), 0.0)[:, None])
    grad.scatter_add_(1, places, -has_label[:, None].to(grad.dtype))
    cross_entropy = torch.where(has_label, largest + total.log() - at_label, 0.0)
    nothing = torch.zeros_like(cross_entropy)
    return Chunk(grad, cross_entropy, nothing, nothing)


class _SoftPass:
    """One pass over z [n, V], overwritten: the divergence by row, and then its gradient."""

    def __init__(self, z: Tensor, targets: PositionTargets, divergence: Divergence) -> None:
        has_id = targets.ids >= 0
        self.places = targets.ids.clamp(min=0)
        at_kept = z.gather(1, self.places).masked_fill(~has_id, -torch.inf)
        # Empty places point at id 0, which must stay in the tail unless it is kept itself.
        first = torch.where((targets.ids == 0).any(dim=1), -torch.inf, z[:, 0])
        z.scatter_(1, self.places, -torch.inf)
        z[:, 0] = first
        largest = z.amax(dim=1)
        largest = torch.where(largest == -torch.inf, 0.0, largest)
        self.exponentials = z.sub_(largest[:, None]).exp_()
        log_tail = largest + self.exponentials.sum(dim=1).log()
        self.terms = SoftTerms.of(at_kept, largest, log_tail, targets, divergence)

    def gradient(self, weight: float, with_softmax: float | Tensor) -> Tensor:
        """[n, V]: weight times the gradient of the divergence, and with_softmax [n] * q for what else has it."""
        of_rest, of_kept = self.terms.factors(weight, with_softmax)
        return self.exponentials.mul_(of_rest[:, None]).scatter_add_(1, self.places, of_kept)


class SoftTerms(NamedTuple):
    """What the divergence makes of n rows of K + 1 outcomes."""

    value: Tensor  # [n]
    log_total: Tensor  # [n] the logsumexp of z over all ids
    slope: Tensor  # [n, K + 1] by log q
    q: Tensor  # [n, K]
    tail: Tensor  # [n] q of the tail
    to_softmax: Tensor  # [n] exp(m - L)
    to_tail: Tensor  # [n] s_t * exp(m - L_t)

    @classmethod
    def of(
        cls, at_kept: Tensor, largest: Tensor, log_tail: Tensor, targets: PositionTargets, divergence: Divergence
    ) -> SoftTerms:
        """at_kept [n, K]: z of the kept ids, -inf in empty places; largest, log_tail [n]: m and L_t."""
        log_total = torch.logaddexp(log_tail, at_kept.logsumexp(dim=1))
        no_tail = log_tail == -torch.inf
        log_p = outcomes(targets, no_tail)
        log_q = torch.cat([at_kept, log_tail[:, None]], dim=1) - log_total[:, None]
        value, slope = divergence(log_p, log_q, torch.cat([targets.ids >= 0, ~no_tail[:, None]], dim=1))
        at_tail = slope[:, -1]
        to_tail = torch.where(at_tail != 0.0, at_tail * (largest - log_tail).exp(), 0.0)
        q = log_q.exp()
        return cls(value, log_total, slope, q[:, :-1], q[:, -1], (largest - log_total).exp(), to_tail)

    def factors(self, weight: float, with_softmax: float | Tensor) -> tuple[Tensor, Tensor]:
        """[n] what E_j is multiplied by at ids not kept, and [n, K] the gradient at kept ones."""
        share = with_softmax - weight * over_outcomes(self.slope)
        of_kept = share[:, None] * self.q + weight * self.slope[:, :-1]
        return share * self.to_softmax + weight * self.to_tail, of_kept


def outcomes(targets: PositionTargets, no_tail: Tensor) -> Tensor:
    """[n, K + 1] log p, the tail last.

    A student that has no other id than the kept ones (`no_tail`) has no tail to give the teacher's tail to: the kept
    ids share it in proportion.
    """
    log_kept = targets.log_p.logsumexp(dim=1)
    whole = torch.where(no_tail, torch.logaddexp(log_kept, targets.log_p_tail) - log_kept, 0.0)
    log_p_tail = targets.log_p_tail.masked_fill(no_tail, -torch.inf)
    return torch.cat([targets.log_p + whole[:, None], log_p_tail[:, None]], dim=1)


def ids_to_tail(targets: PositionTargets, vocabulary: int) -> PositionTargets:
    """Moves the mass of ids that the student does not have into the tail, and marks their places as not counting."""
    missing = (targets.ids < 0) | (targets.ids >= vocabulary)
    lost = targets.log_p.masked_fill(~missing, -torch.inf).logsumexp(dim=1)
    return replace(
        targets,
        ids=targets.ids.masked_fill(missing, -1),
        log_p=targets.log_p.masked_fill(missing, -torch.inf),
        log_p_tail=torch.logaddexp(targets.log_p_tail, lost),
    )
