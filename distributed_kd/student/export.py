"""The trained student as a folder that transformers opens, from any ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distributed_kd.models.tokenizer import load_tokenizer


def gather_weights(model: Any) -> dict[str, torch.Tensor]:
    """All parameters and saved buffers on the CPU, on rank 0 (elsewhere empty). All ranks call it.

    One parameter is gathered at a time, so no rank ever holds a second copy of the model on its device.
    """
    import deepspeed

    first = torch.distributed.get_rank() == 0
    weights = {}
    for name, parameter in model.named_parameters():
        partitioned = [parameter] if hasattr(parameter, "ds_id") else []
        with deepspeed.zero.GatheredParameters(partitioned):
            if first:
                weights[name] = parameter.detach().cpu().clone()
    if first:
        saved = model.state_dict().keys()
        weights |= {name: buffer.cpu() for name, buffer in model.named_buffers() if name in saved}
    return weights


def write_export(model: Any, weights: dict[str, torch.Tensor], tokenizer_folder: Path, target: Path) -> None:
    """Rank 0: configuration, weights and tokenizer in `target`."""
    model.save_pretrained(target, state_dict=weights)
    load_tokenizer(tokenizer_folder).save_pretrained(target)
