"""The DeepSpeed engine of a rank: our configuration, the user's merged over it, and the engine itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from distributed_kd.errors import RequestError
from distributed_kd.launch.abandoned_builds import remove_abandoned_locks
from distributed_kd.models.load import DTYPES
from distributed_kd.recipe import Trainer
from distributed_kd.student.model import DistillationModel

# The recipe says these; said twice they could differ.
_OURS = {
    "train_batch_size": "trainer.global_batch",
    "train_micro_batch_size_per_gpu": "trainer.micro_batch",
    "gradient_accumulation_steps": "trainer.global_batch and trainer.micro_batch",
    "gradient_clipping": "trainer.gradient_clipping",
    "scheduler": "trainer.schedule",
    "optimizer.params.lr": "trainer.learning_rate",
    "optimizer.params.weight_decay": "trainer.weight_decay",
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "amp", "torch_autocast"), "trainer.precision"),
}

_LARGEST_BUCKET = 500_000_000  # elements: DeepSpeed's own default


def deepspeed_config(trainer: Trainer, world: int) -> dict[str, Any]:
    """The whole DeepSpeed configuration. Raises `RequestError` for what does not go with the rest of the recipe."""
    user = _user_config(trainer.deepspeed)
    for key, own in _OURS.items():
        if _said(user, key) is not None:
            raise RequestError(f"trainer.deepspeed says {key}; say it as {own} instead")
    optimizer = _said(user, "optimizer.type")
    if optimizer not in (None, "AdamW"):
        raise RequestError(
            f"trainer.deepspeed says optimizer.type {optimizer}; students are trained by AdamW, leave it out"
        )
    config: dict[str, Any] = {
        "train_batch_size": trainer.global_batch,
        "train_micro_batch_size_per_gpu": trainer.micro_batch,
        "gradient_accumulation_steps": trainer.global_batch // (trainer.micro_batch * world),
        "gradient_clipping": trainer.gradient_clipping,
        "steps_per_print": 1_000_000_000,  # progress is ours to show
        "optimizer": {
            "type": "AdamW",
            "params": {
                "torch_adam": True,  # the fused ones are compiled at start and need a CUDA toolkit
                "lr": trainer.learning_rate,
                "weight_decay": trainer.weight_decay,
            },
        },
        "zero_optimization": {"stage": 1},
        "bf16": {"enabled": trainer.precision == "bfloat16"},
        "fp16": {"enabled": trainer.precision == "float16"},
    }
    config = _merged(config, user)
    if trainer.compile and zero_stage(config) == 3:
        raise RequestError(
            "trainer.compile does not go with ZeRO stage 3, whose layers gather their weights as they run; choose "
            "trainer.deepspeed.zero_optimization.stage=2, or leave out `compile`"
        )
    return config


def zero_stage(config: dict[str, Any]) -> int:
    return int(config["zero_optimization"].get("stage", 0))


def start_engine(model: DistillationModel, trainer: Trainer, config: dict[str, Any], steps: int) -> Any:
    """The engine; its optimizer has only the parameters that are trained, its buckets no more room than they take.

    The first rank's parameters become those of all. Raises `RequestError` where the device does not compute in
    `trainer.precision`.
    """
    import deepspeed

    accelerator = deepspeed.get_accelerator()
    supported = {"float16": accelerator.is_fp16_supported, "bfloat16": accelerator.is_bf16_supported}
    if trainer.precision in supported and not supported[trainer.precision]():
        others = " or ".join(["float32", *(name for name, is_supported in supported.items() if is_supported())])
        raise RequestError(
            f"trainer.precision {trainer.precision}: the {accelerator.device_name()} here does not compute in it; "
            f"choose {others}"
        )
    remove_abandoned_locks()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A bucket is allocated whole, and with overlap_comm there are two.
    buckets = {"reduce_bucket_size": min(_LARGEST_BUCKET, sum(parameter.numel() for parameter in trained))}
    config = _merged({"zero_optimization": buckets}, config)
    if zero_stage(config) == 3:
        _divide(model, DTYPES[trainer.precision], config)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=trained,
        config=config,
        lr_scheduler=lambda optimizer: learning_rate_schedule(trainer, optimizer, steps),
    )
    return engine


def _divide(model: DistillationModel, dtype: torch.dtype, config: dict[str, Any]) -> None:
    """Gives each rank its part of each parameter, one after the other: a device never has more than one of them whole.

    `deepspeed.initialize` would put the whole student there before it divides it.
    """
    import deepspeed

    accelerator = deepspeed.get_accelerator()
    deepspeed.init_distributed(accelerator.communication_backend_name())  # the group that is there
    is_first = torch.distributed.get_rank() == 0
    for parameter in filter(torch.is_floating_point, model.parameters()):
        parameter.data = parameter.data.to(dtype) if is_first else torch.empty_like(parameter.data, dtype=dtype)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(accelerator.current_device_name())
    deepspeed.zero.Init(module=model, config_dict_or_path=config)


def learning_rate_schedule(trainer: Trainer, optimizer: Any, steps: int) -> Any:
    """The recipe's schedule over so many steps: a linear warm-up, then what `trainer.schedule` says.

    wsd (warm-up, stable, decay): Hu et al., "MiniCPM", 2024.
    """
    from transformers import get_scheduler

    warmup = round(trainer.warmup_fraction * steps)
    if trainer.schedule == "wsd":
        decay = min(steps - warmup, round(trainer.decay_fraction * steps))
        more = {"num_decay_steps": decay, "decay_type": "linear"}
        return get_scheduler("warmup_stable_decay", optimizer, warmup, steps, scheduler_specific_kwargs=more)
    name = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}[trainer.schedule]
    return get_scheduler(name, optimizer, warmup, steps)


def _user_config(given: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    try:
        config = json.loads(Path(given).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise RequestError(f"trainer.deepspeed {given} is not a JSON file that can be read: {error}") from error
    return _without_auto(config)


def _said(config: Any, key: str) -> Any:
    """The value at `section.key`, None where there is none."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _without_auto(config: dict[str, Any]) -> dict[str, Any]:
    """`auto` is how the Hugging Face Trainer's files leave a value to us; a section of nothing else goes too."""
    kept = {}
    for key, value in config.items():
        inner = _without_auto(value) if isinstance(value, dict) else value
        if inner != "auto" and (inner or not value):
            kept[key] = inner
    return kept


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = _merged(base[key], value) if both else value
    return result
