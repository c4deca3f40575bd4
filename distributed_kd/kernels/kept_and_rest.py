"""Logits split into kept ids and the rest, in one pass: what a teacher's tail and a student's loss are made of.

Shapes: n positions, V vocabulary, K kept ids.
"""

# Triton types a kernel's arguments itself.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
WARPS = 8


class KeptAndRest(NamedTuple):
    """z: the logits after scale and soft-cap. Where no id is left, `largest` is 0 and the logsumexps are -inf."""

    at_kept: Tensor  # [n, K] z of the kept ids, 0 in empty places
    at_label: Tensor  # [n] z of the labels; without labels, and of a label below 0, it says nothing
    largest: Tensor  # [n] m, the largest z that is not kept
    log_rest: Tensor  # [n] logsumexp of z / temperature over the ids not kept
    log_rest_at_one: Tensor  # [n] the same at temperature 1


def kept_and_rest(
    logits: Tensor, ids: Tensor, temperature: float, labels: Tensor | None = None,
    scale: float = 1.0, softcap: float | None = None,
) -> KeptAndRest:  # fmt: skip
    """logits [n, V] float32, in which the kept ids' places are -inf afterwards; ids [n, K], below 0 in empty places."""
    n, vocabulary = logits.shape
    k = ids.shape[1]
    at_kept = logits.new_empty(n, k)
    at_label, largest, at_temperature, at_one = logits.new_zeros(4, n)
    if n:
        _kept_and_rest[(n,)](
            logits, logits.stride(0), ids, ids.stride(0), labels if labels is not None else ids, at_kept, at_label,
            largest, at_temperature, at_one, vocabulary, k, 1.0 / temperature, scale, softcap or 1.0,
            CAPPED=softcap is not None, LABELLED=labels is not None, K_BLOCK=triton.next_power_of_2(max(1, k)),
            BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return KeptAndRest(at_kept, at_label, largest, largest / temperature + at_temperature.log(), largest + at_one.log())


@triton.jit
def capped(x, scale, softcap, CAPPED: tl.constexpr):
    """Scale and soft-cap; tanh(y) = 2 sigmoid(2y) - 1. -inf, which stands for a kept id, stays."""
    y = x * scale
    if CAPPED:
        y = tl.where(y > float("-inf"), softcap * (2.0 * tl.sigmoid(2.0 * y / softcap) - 1.0), y)
    return y


@triton.jit
def _kept_and_rest(
    logits, stride, ids, ids_stride, labels, at_kept, at_label, largest, at_temperature, at_one, vocabulary, k,
    inverse_temperature, scale, softcap,
    CAPPED: tl.constexpr, LABELLED: tl.constexpr, K_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    if LABELLED:
        label = tl.load(logits + tl.maximum(tl.load(labels + row), 0))
        tl.store(at_label + row, capped(label, scale, softcap, CAPPED))
    # The kept ids are taken out of the row before it is summed.
    slots = tl.arange(0, K_BLOCK)
    own = tl.load(ids + row * ids_stride + slots, mask=slots < k, other=-1)
    kept = capped(tl.load(logits + own, mask=own >= 0, other=0.0), scale, softcap, CAPPED)
    tl.store(at_kept + row * k + slots, tl.where(own >= 0, kept, 0.0), mask=slots < k)
    tl.debug_barrier()
    tl.store(logits + own, float("-inf"), mask=own >= 0)
    tl.debug_barrier()

    top = float("-inf")
    warm = 0.0
    plain = 0.0
    for begin in range(0, vocabulary, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        x = tl.load(logits + columns, mask=columns < vocabulary, other=float("-inf"))
        x = capped(x, scale, softcap, CAPPED)
        new_top = tl.maximum(top, tl.max(x, axis=0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        warm *= tl.exp((top - base) * inverse_temperature)
        warm += tl.sum(tl.exp((x - base) * inverse_temperature), axis=0)
        plain *= tl.exp(top - base)
        plain += tl.sum(tl.exp(x - base), axis=0)
        top = new_top
    tl.store(largest + row, tl.where(top == float("-inf"), 0.0, top))
    tl.store(at_temperature + row, warm)
    tl.store(at_one + row, plain)
