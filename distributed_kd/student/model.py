"""The student as DeepSpeed sees it: a module whose forward takes a micro-batch and returns the loss.

Everything that reads a parameter happens inside `forward`, called as `engine(batch)`: under ZeRO-3 a parameter read
outside it has no elements. The head's weight is read as an attribute and never called as a module, so it is
registered as an external parameter, which DeepSpeed then gathers around this module's forward.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from distributed_kd.models import parts
from distributed_kd.recipe import Objective
from distributed_kd.student import divergence
from distributed_kd.student.cosine import cosine_loss
from distributed_kd.student.objective import Loss, linear_distillation_loss
from distributed_kd.student.stream import MicroBatch


class DistillationModel(nn.Module):
    def __init__(self, model: Any, objective: Objective, zero_stage: int = 0) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.divergence = divergence.find(objective.divergence, objective.beta, objective.skew)
        self.last_loss: Loss | None = None
        if zero_stage == 3:
            import deepspeed

            head = parts.head_of(model)
            for parameter in (head.weight, head.bias):
                if parameter is not None:
                    deepspeed.zero.register_external_parameter(self, parameter)

    def forward(self, batch: MicroBatch, scale: float, labels_alone: bool = False) -> Tensor:
        """The loss summed over the micro-batch's positions, times `scale`; its parts stay in `last_loss`.

        labels_alone: whatever `objective.alpha` is, the cross-entropy on the labels.
        """
        own = None
        if self.objective.cosine > 0.0 and not labels_alone:
            body = parts.body_with_state(self.model, -1)
            hidden, own = body(batch.input_ids, batch.position_ids, batch.present)
        else:
            hidden = parts.body_of(self.model)(batch.input_ids, batch.position_ids, batch.present, batch.features)
        loss = linear_distillation_loss(
            hidden[batch.loss_mask],
            parts.head_of(self.model),
            batch.targets,
            temperature=self.objective.temperature,
            alpha=0.0 if labels_alone else self.objective.alpha,
            divergence=self.divergence,
            chunk=self.objective.chunk,
        )
        if own is not None:
            assert batch.targets.hidden is not None  # `train.py` refuses caches without
            cosine = cosine_loss(own[batch.loss_mask], batch.targets.hidden, batch.targets.weight)
            loss = loss._replace(total=loss.total + self.objective.cosine * cosine, cosine=cosine)
        self.last_loss = Loss(*(part.detach() for part in loss))
        return loss.total * scale
