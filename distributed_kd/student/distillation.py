"""The loss of any model of transformers on a collated batch, in a training loop that is not ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distributed_kd.models import parts
from distributed_kd.student import divergence as divergences
from distributed_kd.student.objective import Loss, linear_distillation_loss
from distributed_kd.student.position_targets import PositionTargets


def distillation_loss(
    model: Any, batch: Mapping[str, Tensor], *, alpha: float, divergence: str = "forward_kl", chunk: int | None = None
) -> Loss:
    """The loss of `objective.py`, summed over the batch's N positions: divide `total` by those of the global batch.

    batch: as `Collator` makes it, on the model's device. model: a language model or classifier, as it is or wrapped by
    peft, DDP or FSDP2's `fully_shard`, of which the head is in the outermost group. Raises `RequestError` for a head
    that cannot be taken apart; `models.parts.check` says of a model whether it is understood.
    """
    hidden = parts.hidden_states(
        model, batch["input_ids"], batch["position_ids"], batch["attention_mask"], batch.get("features")
    )
    head = parts.head_of(model)
    targets = PositionTargets(*(batch[f"target_{key}"] for key in ("labels", "ids", "log_p", "log_p_tail")))
    with torch.autocast(hidden.device.type, enabled=False):
        return linear_distillation_loss(
            hidden[batch["loss_mask"]].to(head.weight.dtype),
            head,
            targets,
            temperature=float(batch["temperature"]),
            alpha=alpha,
            divergence=divergences.find(divergence),
            chunk=chunk,
        )
