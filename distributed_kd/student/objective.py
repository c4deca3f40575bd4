"""The distillation loss on hidden states: L = (1 - alpha) * CE(labels, T = 1) + alpha * T^2 * KL(p_T || q_T).

Hinton, Vinyals and Dean (2015). The same T on both sides of the KL, T = 1 for the hard labels; alpha = 1 never
reads the labels, alpha = 0 never the soft targets. Another divergence may stand in the KL's place (`divergence.py`).
The tail is one more outcome on both sides, so targets are not renormalised; the student's tail is a logsumexp over the
ids that are not kept.

`linear_distillation_loss(impl=...)`. These form the gradients of hidden states and head in the same pass as the loss,
`chunk` positions at a time, so that [N, V] never exists:
    chunked    torch (`chunk_gradient.py`)
    compiled   the same through torch.compile
    triton     two kernels for GPUs (`chunk_gradient_triton.py`)
    auto       triton on a CUDA device where Triton can be imported, chunked elsewhere
and `reference` is dense autograd in float64. `compiled` is for devices that torch.compile serves and these kernels do
not, by its name alone: on a GPU it writes Triton itself, so where that cannot be imported it raises `TritonMissing`.

alpha = 0 takes the same pass as the rest: torch's `linear_cross_entropy` takes 1.5 times as long on a CPU
(`benchmarks/objective.py`). From it is the order of arguments; in the place of its `reduction` is always the sum, since
the mean is over the positions of all ranks (`loop.py`), and in that of its `options` the `chunk`, by which memory goes.

Shapes: N positions, D hidden size, V rows of the student's head, K kept ids.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distributed_kd.models.parts import Head
from distributed_kd.student.chunk_gradient import ChunkGradient, Form, chunk_gradient, ids_to_tail, outcomes
from distributed_kd.student.divergence import Divergence, forward_kl
from distributed_kd.student.position_targets import PositionTargets

Implementation = Literal["auto", "chunked", "compiled", "triton", "reference"]

_CPU_CHUNK = 256
_DEVICE_LOGITS = 2**30  # bytes of float32 logits at once on an accelerator, which larger products would not fill better
_FEW_CHUNKS = 8


class Loss(NamedTuple):
    """Sums over positions. Only `total` carries a gradient; what was not read, at alpha 0 or 1, is nan."""

    total: Tensor
    cross_entropy: Tensor
    divergence: Tensor
    tail: Tensor  # the student's mass on ids that are not kept
    cosine: Tensor  # 1 - cos of hidden states (`cosine.py`), which is no part of this function's loss: nan


def linear_distillation_loss(
    hidden: Tensor,
    head: Head,
    targets: PositionTargets,
    *,
    temperature: float,
    alpha: float,
    divergence: Divergence = forward_kl,
    chunk: int | None = None,
    impl: Implementation = "auto",
) -> Loss:
    """hidden [N, D], the student's head and N targets -> the loss summed over positions, each times its weight.

    With N = 0 the loss is zero and hidden states and head stay in the graph. chunk: positions whose logits exist at
    once; None: what suits the device. Targets do not say how they were chosen: with drawn ones forward_kl alone is
    right in the mean, and recipes (`Objective.refuse_drawn_targets`) and `dkd train` refuse the others, this does not.
    """
    form = Form(temperature, alpha, divergence)
    if form.soft:
        targets = ids_to_tail(targets, head.rows)
    if impl == "reference":
        return _reference(hidden, head, targets, form)
    chunk = chunk or chunk_for(hidden.device, head.rows)
    gradient_of = _find(impl, hidden.device)
    total, cross_entropy, diverged, tail = _Chunked.apply(
        hidden, head.weight, head.bias, head, targets, form, chunk, gradient_of
    )
    return Loss(total, cross_entropy, diverged, tail, torch.full_like(tail, torch.nan))


def chunk_for(device: torch.device, vocabulary: int) -> int:
    """On an accelerator a power of two, which its matrix units divide evenly."""
    if device.type == "cpu":
        return _CPU_CHUNK
    return 1 << (max(128, _DEVICE_LOGITS // (4 * vocabulary)).bit_length() - 1)


def _find(impl: Implementation, device: torch.device) -> ChunkGradient:
    if impl == "compiled":
        return _compiled()
    if impl == "triton":
        return _kernels()
    if impl == "auto" and device.type == "cuda":
        with suppress(ImportError):
            return _kernels()
    return chunk_gradient


def _kernels() -> ChunkGradient:
    from distributed_kd.student.chunk_gradient_triton import chunk_gradient as kernels

    return kernels


@cache
def _compiled() -> ChunkGradient:
    return torch.compile(chunk_gradient, dynamic=True)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        targets: PositionTargets,
        form: Form,
        chunk: int,
        gradient_of: ChunkGradient,
    ) -> tuple[Tensor, ...]:
        head = replace(head, weight=weight, bias=bias)  # under ZeRO-3 these are the gathered ones
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        sums = _sum_dtype(weight, -(-len(targets) // chunk))
        grad_weight = torch.zeros_like(weight, dtype=sums) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        cross_entropy = hidden.new_zeros((), dtype=torch.float32)
        diverged = hidden.new_zeros((), dtype=torch.float32)
        tail = hidden.new_zeros((), dtype=torch.float32)
        for begin in range(0, len(targets), chunk):
            rows, own = hidden[begin : begin + chunk], targets.rows(begin, begin + chunk)
            found = gradient_of(rows, head, own, form)
            cross_entropy += _weighted(found.cross_entropy, own.weight).sum()
            diverged += _weighted(found.divergence, own.weight).sum()
            tail += _weighted(found.tail, own.weight).sum()
            if grad_hidden is not None:
                torch.mm(found.grad, weight, out=grad_hidden[begin : begin + chunk])
                if own.weight is not None:
                    grad_hidden[begin : begin + chunk] *= own.weight[:, None]
            # A position's weight goes into its row of the hidden states: D numbers, where the gradient has V.
            rows = _weighted(rows, own.weight)
            if grad_bias is not None:
                grad_bias += found.grad.sum(dim=0) if own.weight is None else own.weight @ found.grad.float()
            if grad_weight is not None:
                _add_product(grad_weight, found.grad, rows)
            del found  # before the next chunk's logits are made
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        # backward scales the gradients in place: a copy of the head's would be as large as the head
        ctx.is_spent = False
        if form.alpha == 0.0:
            total = cross_entropy.clone()
            diverged = tail = torch.full_like(diverged, torch.nan)
        elif form.alpha == 1.0:
            total, cross_entropy = form.temperature**2 * diverged, torch.full_like(cross_entropy, torch.nan)
        else:
            total = form.alpha * form.temperature**2 * diverged + (1.0 - form.alpha) * cross_entropy
        ctx.mark_non_differentiable(cross_entropy, diverged, tail)
        return total, cross_entropy, diverged, tail

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
            None, None, None, None, None,
        )  # fmt: skip


def _weighted(rows: Tensor, weight: Tensor | None) -> Tensor:
    """rows [n] or [n, D], each times its weight, in their dtype."""
    if weight is None:
        return rows
    return (rows * (weight if rows.dim() == 1 else weight[:, None])).to(rows.dtype)


def _sum_dtype(weight: Tensor, chunks: int) -> torch.dtype:
    """Of the sum over chunks; a chunk's own product is summed in float32 whatever this is.

    A few sums in half precision add less than the result's rounding to it does, and save the float32 copy.
    """
    return weight.dtype if weight.is_cuda and chunks <= _FEW_CHUNKS else torch.float32


def _add_product(grad_weight: Tensor, grad: Tensor, rows: Tensor) -> None:
    """grad_weight [V, D] += grad^T rows, without a second tensor of its size where that can be."""
    if grad_weight.dtype == rows.dtype:
        grad_weight.addmm_(grad.T, rows)
    elif rows.is_cuda:
        torch.addmm(grad_weight, grad.T, rows, out_dtype=torch.float32, out=grad_weight)
    else:
        grad_weight += grad.T @ rows


def _reference(hidden: Tensor, head: Head, targets: PositionTargets, form: Form) -> Loss:
    """Dense, in float64: the divergence's own slopes are not used, autograd finds them."""
    double = replace(head, weight=head.weight.double(), bias=None if head.bias is None else head.bias.double())
    logits = double.logits(hidden.double())
    vocabulary = logits.shape[1]
    weight = logits.new_ones(len(logits)) if targets.weight is None else targets.weight.double()
    total = logits.sum() * 0.0
    cross_entropy = diverged = tail = torch.full_like(total, torch.nan)
    if form.soft:
        log_q = (logits / form.temperature).log_softmax(dim=1)
        # The last column takes empty places, so that they mark no id as kept.
        places = torch.where(targets.ids < 0, vocabulary, targets.ids)
        kept = torch.zeros(len(logits), vocabulary + 1, dtype=torch.bool, device=logits.device)
        kept.scatter_(1, places, True)
        log_q_tail = log_q.masked_fill(kept[:, :-1], -torch.inf).logsumexp(dim=1)
        no_tail = kept[:, :-1].all(dim=1)
        in_double = replace(targets, log_p=targets.log_p.double(), log_p_tail=targets.log_p_tail.double())
        has = torch.cat([targets.ids >= 0, ~no_tail[:, None]], dim=1)
        own = torch.cat([log_q.gather(1, places.clamp(max=vocabulary - 1)), log_q_tail[:, None]], dim=1)
        # Where there is no outcome a finite number stands in, so that autograd multiplies no infinity by zero.
        found = form.divergence(outcomes(in_double, no_tail), torch.where(has, own, -1e4), has).value
        diverged = (found * weight).sum()
        tail = (log_q_tail.exp() * weight).sum()
        total = total + form.alpha * form.temperature**2 * diverged
    if form.hard:
        of_rows = torch.nn.functional.cross_entropy(logits, targets.labels, reduction="none")
        cross_entropy = (of_rows * weight).sum()
        total = total + (1.0 - form.alpha) * cross_entropy
    return Loss(total, cross_entropy.detach(), diverged.detach(), tail.detach(), torch.full_like(tail, torch.nan))
