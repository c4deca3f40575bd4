"""The distillation loss on hidden states: L = (1 - alpha) * CE(labels, T = 1) + alpha * T^2 * KL(p_T || q_T).

Hinton, Vinyals and Dean (2015). The same T on both sides of the KL, T = 1 for the hard labels; alpha = 1 never
reads the labels. Another divergence may stand in the KL's place (`divergence.py`). The tail is one more outcome on both
sides, so targets are not renormalised; the student's tail is a logsumexp over the ids that are not kept.

`linear_distillation_loss(impl=...)`: `chunked` forms the gradients of hidden states and head in the same pass as
the loss, `chunk` positions at a time, so that [N, V] never exists; `reference` is dense autograd in float64.

Shapes: N positions, D hidden size, V rows of the student's head, K kept ids.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distributed_kd.models.parts import Head
from distributed_kd.student.divergence import Divergence, forward_kl, over_outcomes


@dataclass(frozen=True)
class PositionTargets:
    """Soft targets at one temperature, as tensors. Ids outside [0, V) are taken for tail."""

    labels: Tensor  # [N] int64
    ids: Tensor  # [N, K] int64
    log_p: Tensor  # [N, K] float32, log p_T; -inf at ids that do not count
    log_p_tail: Tensor  # [N] float32

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, begin: int, end: int) -> PositionTargets:
        return PositionTargets(*(tensor[begin:end] for tensor in self._tensors))

    def to(self, device: torch.device) -> PositionTargets:
        return PositionTargets(*(tensor.to(device) for tensor in self._tensors))

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.labels, self.ids, self.log_p, self.log_p_tail


class Loss(NamedTuple):
    """Sums over positions. Only `total` carries a gradient; `cross_entropy` is nan where labels were not read."""

    total: Tensor
    cross_entropy: Tensor
    divergence: Tensor


def linear_distillation_loss(
    hidden: Tensor,
    head: Head,
    targets: PositionTargets,
    *,
    temperature: float,
    alpha: float,
    divergence: Divergence = forward_kl,
    chunk: int = 256,
    impl: Literal["chunked", "reference"] = "chunked",
) -> Loss:
    """hidden [N, D], the student's head and N targets -> the loss summed over positions.

    With N = 0 the loss is zero and hidden states and head stay in the graph.
    """
    targets = _ids_to_tail(targets, head.weight.shape[0])
    if impl == "reference":
        return _reference(hidden, head, targets, temperature, alpha, divergence)
    return Loss(*_Chunked.apply(hidden, head.weight, head.bias, head, targets, temperature, alpha, divergence, chunk))


def _ids_to_tail(targets: PositionTargets, vocabulary: int) -> PositionTargets:
    """Moves the mass of ids that the student does not have into the tail, and marks their places as not counting."""
    missing = (targets.ids < 0) | (targets.ids >= vocabulary)
    if not bool(missing.any()):
        return targets
    lost = targets.log_p.masked_fill(~missing, -torch.inf).logsumexp(dim=1)
    return replace(
        targets,
        ids=targets.ids.masked_fill(missing, -1),
        log_p=targets.log_p.masked_fill(missing, -torch.inf),
        log_p_tail=torch.logaddexp(targets.log_p_tail, lost),
    )


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        targets: PositionTargets,
        temperature: float,
        alpha: float,
        divergence: Divergence,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = replace(head, weight=weight, bias=bias)  # under ZeRO-3 these are the gathered ones
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        cross_entropy = hidden.new_zeros((), dtype=torch.float32)
        diverged = hidden.new_zeros((), dtype=torch.float32)
        for begin in range(0, len(targets), chunk):
            rows = hidden[begin : begin + chunk]
            logits = head.logits(rows).float()
            slope = None if head.softcap is None else 1.0 - (logits / head.softcap) ** 2
            grad, chunk_cross_entropy, chunk_diverged = _logit_gradient(
                logits, targets.rows(begin, begin + chunk), temperature, alpha, divergence
            )
            cross_entropy += chunk_cross_entropy
            diverged += chunk_diverged
            if slope is not None:
                grad *= slope
            if head.scale != 1.0:
                grad *= head.scale
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[begin : begin + chunk])
            if grad_weight is not None and rows.dtype == torch.float32:
                grad_weight.addmm_(grad.T, rows)  # no second tensor of its size
            elif grad_weight is not None:
                grad_weight += grad.T @ rows
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        ctx.is_spent = (
            False  # backward scales the gradients in place: a copy of the head's would be as large as the head
        )
        total = alpha * temperature**2 * diverged
        if alpha < 1.0:
            total = total + (1.0 - alpha) * cross_entropy
        else:
            cross_entropy = torch.full_like(cross_entropy, torch.nan)
        ctx.mark_non_differentiable(cross_entropy, diverged)
        return total, cross_entropy, diverged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.is_spent:
            raise RuntimeError("the first backward pass took this loss's gradients; compute the loss again")
        ctx.is_spent = True
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if grad_hidden is None else grad_hidden.mul_(grad_total),
            None if grad_weight is None else grad_weight.mul_(grad_total).to(weight_dtype),
            None if grad_bias is None else grad_bias.mul_(grad_total).to(bias_dtype),
            None, None, None, None, None, None,
        )  # fmt: skip


def _logit_gradient(
    logits: Tensor, targets: PositionTargets, temperature: float, alpha: float, divergence: Divergence
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the loss in the logits [n, V], which it overwrites; cross-entropy and divergence, summed.

    At T = 1 one pass serves both terms.
    """
    hard = alpha < 1.0
    at_label = logits.gather(1, targets.labels[:, None]).squeeze(1) if hard else None
    if temperature == 1.0:
        soft = _SoftPass(logits, targets, divergence)
        grad = soft.gradient(alpha, with_softmax=1.0 - alpha)
        cross_entropy = (soft.log_total - at_label).sum() if at_label is not None else soft.value.new_zeros(())
    else:
        soft = _SoftPass(logits / temperature, targets, divergence)
        # alpha T^2 from the loss, 1/T from the chain rule.
        grad = soft.gradient(alpha * temperature, with_softmax=0.0)
        cross_entropy = soft.value.new_zeros(())
        if at_label is not None:
            log_total = logits.logsumexp(dim=1)
            cross_entropy = (log_total - at_label).sum()
            grad += logits.sub_(log_total[:, None]).exp_().mul_(1.0 - alpha)
    if hard:
        grad.scatter_add_(1, targets.labels[:, None], grad.new_full((len(grad), 1), alpha - 1.0))
    return grad, cross_entropy, soft.value.sum()


class _SoftPass:
    """One pass over scaled logits z = logits / T [n, V], overwritten: the divergence by row, and then its gradient.

    With E_j = exp(z_j - m), m the largest logit that is not kept, L_t and L the logsumexps over ids not kept and over
    all, s_k and s_t the divergence's slopes by log q of a kept id and of the tail, and S their sum, the gradient is
        not kept:  E_j * (s_t * exp(m - L_t) - S * exp(m - L))
        kept:      s_k - S * q_k
    which takes as many passes over the chunk as cross-entropy. For forward_kl, s = -p.
    """

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
        self.log_total = torch.logaddexp(log_tail, at_kept.logsumexp(dim=1))

        no_tail = log_tail == -torch.inf
        log_p = _outcomes(targets, no_tail)
        log_q = torch.cat([at_kept, log_tail[:, None]], dim=1) - self.log_total[:, None]
        self.value, self.slope = divergence(log_p, log_q, torch.cat([has_id, ~no_tail[:, None]], dim=1))
        self.q = log_q[:, :-1].exp()
        self.to_softmax = (largest - self.log_total).exp()
        at_tail = self.slope[:, -1]
        self.to_tail = torch.where(at_tail != 0.0, at_tail * (largest - log_tail).exp(), 0.0)

    def gradient(self, weight: float, with_softmax: float) -> Tensor:
        """[n, V]: weight times the gradient of the divergence, and with_softmax * q for what else has it."""
        share = with_softmax - weight * over_outcomes(self.slope)
        grad = self.exponentials.mul_((share * self.to_softmax + weight * self.to_tail)[:, None])
        return grad.scatter_add_(1, self.places, share[:, None] * self.q + weight * self.slope[:, :-1])


def _outcomes(targets: PositionTargets, no_tail: Tensor) -> Tensor:
    """[n, K + 1] log p, the tail last.

    A student that has no other id than the kept ones (`no_tail`) has no tail to give the teacher's tail to: the kept
    ids share it in proportion.
    """
    log_kept = targets.log_p.logsumexp(dim=1)
    whole = torch.where(no_tail, torch.logaddexp(log_kept, targets.log_p_tail) - log_kept, 0.0)
    log_p_tail = targets.log_p_tail.masked_fill(no_tail, -torch.inf)
    return torch.cat([targets.log_p + whole[:, None], log_p_tail[:, None]], dim=1)


def _reference(
    hidden: Tensor, head: Head, targets: PositionTargets, temperature: float, alpha: float, divergence: Divergence
) -> Loss:
    """Dense, in float64: the divergence's own slopes are not used, autograd finds them."""
    double = replace(head, weight=head.weight.double(), bias=None if head.bias is None else head.bias.double())
    logits = double.logits(hidden.double())
    vocabulary = logits.shape[1]
    log_q = (logits / temperature).log_softmax(dim=1)
    # The last column takes empty places, so that they mark no id as kept.
    places = torch.where(targets.ids < 0, vocabulary, targets.ids)
    kept = torch.zeros(len(logits), vocabulary + 1, dtype=torch.bool, device=logits.device).scatter_(1, places, True)
    log_q_tail = log_q.masked_fill(kept[:, :-1], -torch.inf).logsumexp(dim=1)
    no_tail = kept[:, :-1].all(dim=1)
    in_double = replace(targets, log_p=targets.log_p.double(), log_p_tail=targets.log_p_tail.double())
    has = torch.cat([targets.ids >= 0, ~no_tail[:, None]], dim=1)
    own = torch.cat([log_q.gather(1, places.clamp(max=vocabulary - 1)), log_q_tail[:, None]], dim=1)
    # Where there is no outcome a finite number stands in, so that autograd multiplies no infinity by zero.
    diverged = divergence(_outcomes(in_double, no_tail), torch.where(has, own, -1e4), has).value.sum()
    total = alpha * temperature**2 * diverged
    if alpha == 1.0:
        return Loss(total, torch.full_like(diverged, torch.nan), diverged.detach())
    cross_entropy = torch.nn.functional.cross_entropy(logits, targets.labels, reduction="sum")
    return Loss(total + (1.0 - alpha) * cross_entropy, cross_entropy.detach(), diverged.detach())
