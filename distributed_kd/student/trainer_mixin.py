"""The loss in transformers' `Trainer` and what is made from it, TRL's among it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distributed_kd.student.distillation import distillation_loss


class DistillationMixin:
    """Before a trainer in a class's bases: its loss becomes `distillation_loss` of batches that `Collator` makes.

    `alpha` and `divergence` are those of `distillation_loss`; say them in the class. The trainer's arguments need
    `remove_unused_columns=False`, since it would take the targets for columns that the model does not want.
    """

    alpha: float = 0.5
    divergence: str = "forward_kl"
    accelerator: Any  # the trainer's

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean over all positions of the step, however it is cut into micro-batches and ranks.

        num_items_in_batch: the positions of all of them, as the trainer counts them; of an evaluation's batch its own.
        """
        loss = distillation_loss(model, inputs, alpha=self.alpha, divergence=self.divergence).total
        if num_items_in_batch is None:
            loss = loss / len(inputs["target_labels"])
        else:  # the trainer takes the mean over ranks
            loss = loss * self.accelerator.num_processes / num_items_in_batch
        return (loss, {"loss": loss}) if return_outputs else loss
