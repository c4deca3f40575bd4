"""`chunk_gradient` for GPUs: the head's product in float32 by cuBLAS, then two Triton kernels over its rows.

`_statistics` reads the logits once; between the two kernels the divergence is formed in torch from K + 1 numbers a row
(`chunk_gradient.SoftTerms`), whichever divergence it is; `_gradient` reads the logits once more and writes the gradient
over them. In half precision the gradient takes the first half of each row, so a chunk costs its float32 logits and no
second buffer. In Triton's interpreter (`TRITON_INTERPRET=1`) both run on the CPU.

Shapes: n positions of the chunk, D hidden size, V rows of the head, K kept ids.
"""

# Triton types a kernel's arguments itself.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from distributed_kd.models.parts import Head
from distributed_kd.student.chunk_gradient import Chunk, Form, SoftTerms
from distributed_kd.student.position_targets import PositionTargets

_BLOCK = 4096
_WARPS = 8


def chunk_gradient(hidden: Tensor, head: Head, targets: PositionTargets, form: Form) -> Chunk:
    logits = _product(hidden, head)  # before scale and soft-cap, which the kernels apply
    if not form.soft:
        targets = PositionTargets(targets.labels, targets.ids[:, :0], targets.log_p[:, :0], targets.log_p_tail)
    at_kept, largest, log_tail, log_rest = _statistics_of(logits, targets.ids, head, form.temperature)
    if form.soft:
        has_id = targets.ids >= 0
        scaled = (at_kept / form.temperature).masked_fill(~has_id, -torch.inf)
        terms = SoftTerms.of(scaled, largest / form.temperature, log_tail, targets, form.divergence)
        if form.one_softmax:
            of_rest, of_kept = terms.factors(form.alpha, with_softmax=1.0 - form.alpha)
        else:
            of_rest, of_kept = terms.factors(form.alpha * form.temperature, with_softmax=0.0)
        value = terms.value
    else:
        of_rest, of_kept, value = torch.zeros_like(largest), at_kept, torch.zeros_like(largest)
    of_softmax, cross_entropy = torch.zeros_like(largest), torch.zeros_like(largest)
    if form.hard:
        at_label = _at_label(logits, at_kept, targets, head)
        own = at_kept.masked_fill(targets.ids < 0, -torch.inf)
        log_total = torch.logaddexp(log_rest, own.logsumexp(dim=1))
        cross_entropy = log_total - at_label
        if not (form.soft and form.one_softmax):
            of_softmax = (1.0 - form.alpha) * (largest - log_total).exp()
            if form.soft:
                of_kept = of_kept + (1.0 - form.alpha) * (own - log_total[:, None]).exp()
        if form.soft:
            of_kept = of_kept + (form.alpha - 1.0) * (targets.ids == targets.labels[:, None])
    if head.softcap is not None:
        of_kept = of_kept * (1.0 - (at_kept / head.softcap) ** 2)
    grad = _write_gradient(
        logits, hidden.dtype, targets, head, form, largest, of_rest, of_softmax, of_kept * head.scale
    )
    return Chunk(grad, cross_entropy, value)


def _product(hidden: Tensor, head: Head) -> Tensor:
    """h W^T + bias [n, V] in float32, whatever the operands' dtype."""
    if hidden.is_cuda and hidden.dtype != torch.float32:
        logits = torch.mm(hidden, head.weight.T, out_dtype=torch.float32)
    else:
        logits = torch.mm(hidden, head.weight.T).float()
    return logits if head.bias is None else logits.add_(head.bias)


def _statistics_of(
    logits: Tensor, ids: Tensor, head: Head, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """at_kept [n, K] logits of the kept ids; m, L_t at `temperature` and L_t at 1, each [n], over the ids not kept.

    In `logits` the kept ids' places are -inf afterwards.
    """
    n, vocabulary = logits.shape
    k = ids.shape[1]
    at_kept = logits.new_empty(n, k)
    largest, at_temperature, at_one = (logits.new_empty(n) for _ in range(3))
    if n:
        _statistics[(n,)](
            logits, logits.stride(0), ids, at_kept, largest, at_temperature, at_one, vocabulary, k,
            1.0 / temperature, head.scale, head.softcap or 1.0,
            CAPPED=head.softcap is not None, K_BLOCK=triton.next_power_of_2(max(1, k)), BLOCK=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
    return at_kept, largest, largest / temperature + at_temperature.log(), largest + at_one.log()


def _at_label(logits: Tensor, at_kept: Tensor, targets: PositionTargets, head: Head) -> Tensor:
    """[n] the label's logit, which is among the kept ones where its place in `logits` is -inf by now."""
    found = _capped(logits.gather(1, targets.labels[:, None]).squeeze(1), head)
    is_label = (targets.ids == targets.labels[:, None]) & (targets.ids >= 0)
    return torch.where(is_label.any(dim=1), at_kept.masked_fill(~is_label, 0.0).sum(dim=1), found)


def _capped(logits: Tensor, head: Head) -> Tensor:
    scaled = logits * head.scale
    return scaled if head.softcap is None else head.softcap * torch.tanh(scaled / head.softcap)


def _write_gradient(
    logits: Tensor, dtype: torch.dtype, targets: PositionTargets, head: Head, form: Form,
    largest: Tensor, of_rest: Tensor, of_softmax: Tensor, of_kept: Tensor,
) -> Tensor:  # fmt: skip
    n, vocabulary = logits.shape
    k = targets.ids.shape[1]
    grad = logits.view(dtype)[:, :vocabulary]
    if n:
        _gradient[(n,)](
            logits, grad, logits.stride(0), grad.stride(0), targets.ids, targets.labels if form.hard else targets.ids,
            largest, of_rest, of_softmax, of_kept, vocabulary, k,
            1.0 / form.temperature, form.alpha - 1.0, head.scale, head.softcap or 1.0,
            CAPPED=head.softcap is not None, HARD=form.hard, TWO=not form.one_softmax or not form.soft,
            K_BLOCK=triton.next_power_of_2(max(1, k)), BLOCK=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
    return grad


@triton.jit
def _cap(x, scale, softcap, CAPPED: tl.constexpr):
    """Scale and soft-cap; tanh(y) = 2 sigmoid(2y) - 1. -inf, which stands for a kept id, stays."""
    y = x * scale
    if CAPPED:
        y = tl.where(y > float("-inf"), softcap * (2.0 * tl.sigmoid(2.0 * y / softcap) - 1.0), y)
    return y


@triton.jit
def _statistics(
    logits, stride, ids, at_kept, largest, at_temperature, at_one, vocabulary, k,
    inverse_temperature, scale, softcap, CAPPED: tl.constexpr, K_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    # The kept ids are taken out of the row first.
    slots = tl.arange(0, K_BLOCK)
    own = tl.load(ids + row * k + slots, mask=slots < k, other=-1)
    kept = tl.load(logits + own, mask=own >= 0, other=0.0)
    tl.store(at_kept + row * k + slots, tl.where(own >= 0, _cap(kept, scale, softcap, CAPPED), 0.0), mask=slots < k)
    tl.debug_barrier()
    tl.store(logits + own, float("-inf"), mask=own >= 0)
    tl.debug_barrier()

    top = float("-inf")
    warm = 0.0
    plain = 0.0
    for begin in range(0, vocabulary, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        x = _cap(tl.load(logits + columns, mask=columns < vocabulary, other=float("-inf")), scale, softcap, CAPPED)
        new_top = tl.maximum(top, tl.max(x, axis=0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        warm = warm * tl.exp((top - base) * inverse_temperature) + tl.sum(
            tl.exp((x - base) * inverse_temperature), axis=0
        )
        plain = plain * tl.exp(top - base) + tl.sum(tl.exp(x - base), axis=0)
        top = new_top
    tl.store(largest + row, tl.where(top == float("-inf"), 0.0, top))
    tl.store(at_temperature + row, warm)
    tl.store(at_one + row, plain)


@triton.jit
def _gradient(
    logits, grad, stride, grad_stride, ids, labels, largest, of_rest, of_softmax, of_kept, vocabulary, k,
    inverse_temperature, at_label, scale, softcap,
    CAPPED: tl.constexpr, HARD: tl.constexpr, TWO: tl.constexpr, K_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
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
        x = _cap(tl.load(logits + columns, mask=columns < vocabulary, other=float("-inf")), scale, softcap, CAPPED)
        found = rest * tl.exp((x - top) * inverse_temperature)
        if TWO:
            found += softmax * tl.exp(x - top)
        if HARD:
            found += tl.where(columns == label, at_label, 0.0)
        if CAPPED:
            capped = tl.where(x > float("-inf"), x / softcap, 0.0)
            found *= 1.0 - capped * capped
        # The gradient may take the place of what it is made of: all of a block is read before any of it is written.
        tl.debug_barrier()
        tl.store(grad + columns, (found * scale).to(grad.dtype.element_ty), mask=columns < vocabulary)
    tl.debug_barrier()
    slots = tl.arange(0, K_BLOCK)
    own = tl.load(ids + row * k + slots, mask=slots < k, other=-1)
    kept = tl.load(of_kept + row * k + slots, mask=slots < k, other=0.0)
    tl.store(grad + own, kept.to(grad.dtype.element_ty), mask=own >= 0)
