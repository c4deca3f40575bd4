"""The trained student as a folder that transformers opens, from any ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distributed_kd.models import adapters
from distributed_kd.models.tokenizer import copy_tokenizer
from distributed_kd.recipe import Recipe
from distributed_kd.student.build import base_name, load_student


def gather_weights(model: Any, trained_alone: bool = False) -> dict[str, torch.Tensor]:
    """All parameters and saved buffers on the CPU, on rank 0 (elsewhere empty). All ranks call it.

    trained_alone: no others than the parameters that are trained. One is gathered at a time, so no rank ever holds a
    second copy of the model on its device.
    """
    import deepspeed

    first = torch.distributed.get_rank() == 0
    weights = {}
    for name, parameter in model.named_parameters():
        if trained_alone and not parameter.requires_grad:
            continue
        partitioned = [parameter] if hasattr(parameter, "ds_id") else []
        with deepspeed.zero.GatheredParameters(partitioned):
            if first:
                weights[name] = parameter.detach().cpu().clone()
    if first and not trained_alone:
        saved = model.state_dict().keys()
        weights |= {name: buffer.cpu() for name, buffer in model.named_buffers() if name in saved}
    return weights


def write_export(model: Any, weights: dict[str, torch.Tensor], tokenizer_folder: Path, target: Path) -> None:
    """Rank 0: configuration, weights and tokenizer in `target`."""
    model.save_pretrained(target, state_dict=weights)
    copy_tokenizer(tokenizer_folder, target)


def write_adapters(
    recipe: Recipe, model: Any, weights: dict[str, torch.Tensor], student_folder: Path, target: Path
) -> None:
    """Rank 0: a LoRA student in `target`, from the weights of its adapters alone.

    As peft saves it, with the name of its base; or with `lora.merge` as a plain model. Merged is what was read from
    `student_folder`, in float32 whatever it was trained in, since the live model may be divided over the ranks.
    """
    assert recipe.student.lora is not None
    if recipe.student.lora.merge:
        fresh = load_student(recipe, student_folder)
        fresh.load_state_dict(weights, strict=False)
        trained_in = next(iter(weights.values())).dtype
        fresh.merge_and_unload().to(trained_in).save_pretrained(target)
    else:
        adapters.save(model, weights, base_name(recipe, student_folder), target)
    copy_tokenizer(student_folder, target)
