"""`chunk_gradient` for GPUs: the head's product in float32 by cuBLAS, then two Triton kernels over its rows.

`kept_and_rest` reads the logits once; between the two kernels the divergence is formed in torch from K + 1 numbers a
row (`chunk_gradient.SoftTerms`), whichever divergence it is; `_gradient` reads the logits once more and writes the
gradient over them. In half precision the gradient takes the first half of each row, so a chunk costs its float32
logits and no second buffer.

Shapes: n positions of the chunk, D hidden size, V rows of the head, K kept ids.
"""

# Triton types a kernel's arguments itself.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from distributed_kd.kernels.kept_and_rest import BLOCK, WARPS, KeptAndRest, capped, kept_and_rest
from distributed_kd.models.parts import Head
from distributed_kd.student.chunk_gradient import Chunk, Form, SoftTerms
from distributed_kd.student.position_targets import PositionTargets


def chunk_gradient(hidden: Tensor, head: Head, targets: PositionTargets, form: Form) -> Chunk:
    logits = head.product(hidden)  # before scale and soft-cap, which the kernels apply
    ids = targets.ids if form.soft else targets.ids[:, :0]
    labels = targets.labels if form.hard else None
    found = kept_and_rest(logits, ids, form.temperature, labels, head.scale, head.softcap)
    if form.soft:
        of_rest, of_softmax, of_kept, sums = _soft(found, targets, form)
    else:
        of_rest, of_kept = torch.zeros_like(found.largest), found.at_kept
        of_softmax = form.weight_of_labels(targets.labels) * (found.largest - found.log_rest_at_one).exp()
        sums = (_cross_entropy(found.log_rest_at_one, found, targets), of_rest, of_rest)
    if head.softcap is not None:
        of_kept = of_kept * (1.0 - (found.at_kept / head.softcap) ** 2)
    grad = logits.view(hidden.dtype)[:, : logits.shape[1]]
    _write(logits, grad, ids, labels, found.largest, of_rest, of_softmax, of_kept * head.scale, head, form)
    return Chunk(grad, *sums)


def _soft(
    found: KeptAndRest, targets: PositionTargets, form: Form
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """What exp((z - m) / T) and exp(z - m) are multiplied by, [n] each; the gradient at kept ids [n, K]; and [n] each
    a `Chunk`'s cross-entropy, divergence and tail."""
    at_kept = found.at_kept.masked_fill(targets.ids < 0, -torch.inf)
    terms = SoftTerms.of(
        at_kept / form.temperature, found.largest / form.temperature, found.log_rest, targets, form.divergence
    )
    nothing = torch.zeros_like(found.largest)
    of_labels = form.weight_of_labels(targets.labels) if form.hard else nothing
    if form.one_softmax:
        of_rest, of_kept = terms.factors(form.alpha, with_softmax=of_labels)
        of_softmax, log_total = nothing, terms.log_total
    else:
        of_rest, of_kept = terms.factors(form.alpha * form.temperature, with_softmax=0.0)
        log_total = torch.logaddexp(found.log_rest_at_one, at_kept.logsumexp(dim=1))
        of_softmax = of_labels * (found.largest - log_total).exp()
        if form.hard:
            of_kept = of_kept + of_labels[:, None] * (at_kept - log_total[:, None]).exp()
    if not form.hard:
        return of_rest, of_softmax, of_kept, (nothing, terms.value, terms.tail)
    of_kept = of_kept + (form.alpha - 1.0) * (targets.ids == targets.labels[:, None])
    return of_rest, of_softmax, of_kept, (_cross_entropy(log_total, found, targets), terms.value, terms.tail)


def _cross_entropy(log_total: Tensor, found: KeptAndRest, targets: PositionTargets) -> Tensor:
    return torch.where(targets.labels >= 0, log_total - found.at_label, 0.0)


def _write(
    logits: Tensor, grad: Tensor, ids: Tensor, labels: Tensor | None, largest: Tensor,
    of_rest: Tensor, of_softmax: Tensor, of_kept: Tensor, head: Head, form: Form,
) -> None:  # fmt: skip
    n, vocabulary = logits.shape
    k = ids.shape[1]
    if n:
        _gradient[(n,)](
            logits, grad, logits.stride(0), grad.stride(0), ids, ids.stride(0), labels if labels is not None else ids,
            largest, of_rest, of_softmax, of_kept, vocabulary, k,
            1.0 / form.temperature, form.alpha - 1.0, head.scale, head.softcap or 1.0,
            CAPPED=head.softcap is not None, HARD=form.hard, SOFT=form.soft, TWO=not (form.soft and form.one_softmax),
            K_BLOCK=triton.next_power_of_2(max(1, k)), BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


@triton.jit
def _gradient(
    logits, grad, stride, grad_stride, ids, ids_stride, labels, largest, of_rest, of_softmax, of_kept, vocabulary, k,
    inverse_temperature, at_label, scale, softcap,
    CAPPED: tl.constexpr, HARD: tl.constexpr, SOFT: tl.constexpr, TWO: tl.constexpr,
    K_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    grad += row * grad_stride
    top = tl.load(largest + row)
    rest = tl.load(of_rest + row)
    softmax = tl.load(of_softmax + row)
    label = -1
    if HARD:
        label = tl.load(labels + row).to(tl.int32)
    for begin in range(0, vocabulary, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        x = tl.load(logits + columns, mask=columns < vocabulary, other=float("-inf"))
        x = capped(x, scale, softcap, CAPPED)
        found = tl.zeros([BLOCK], tl.float32)
        if SOFT:
            found += rest * tl.exp((x - top) * inverse_temperature)
        if TWO:
            found += softmax * tl.exp(x - top)
        if HARD:
            found += tl.where(columns == label, at_label, 0.0)
        if CAPPED:
            share = tl.where(x > float("-inf"), x / softcap, 0.0)
            found *= 1.0 - share * share
        # The gradient may take the place of what it is made of: all of a block is read before any of it is written.
        tl.debug_barrier()
        tl.store(grad + columns, (found * scale).to(grad.dtype.element_ty), mask=columns < vocabulary)
    tl.debug_barrier()
    slots = tl.arange(0, K_BLOCK)
    own = tl.load(ids + row * ids_stride + slots, mask=slots < k, other=-1)
    kept = tl.load(of_kept + row * k + slots, mask=slots < k, other=0.0)
    tl.store(grad + own, kept.to(grad.dtype.element_ty), mask=own >= 0)
