"""Loading a model in a dtype that the device computes in."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from distributed_kd.errors import RequestError
from distributed_kd.models import adapters
from distributed_kd.models.config import (
    architecture_of,
    is_masked_lm,
    is_text_classifier,
    load_config,
    takes_features,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device() -> torch.device:
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device has instructions for it: elsewhere it is three times slower than float32."""
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def load_model(folder: Path, dtype: torch.dtype, device: torch.device, devices: int = 1) -> Any:
    """The model in eval mode, with remote code off; a quantised one as its own configuration says, an adapter merged
    into its base.

    devices: divide it over so many, by transformers' own plan for its architecture; every one of the process group's
    `devices` ranks makes this call. Raises `RequestError` for a model that cannot be loaded, or has no such plan.
    """
    from transformers.distributed.configuration_utils import DistributedConfig

    if adapters.is_adapter(folder):
        base = load_model(adapters.base_of(folder), dtype, device, devices)
        return adapters.open_merged(base, folder).eval()
    heads = getattr(load_config(folder).get_text_config(), "num_key_value_heads", None)
    if devices > 1 and heads is not None and heads % devices:
        raise RequestError(
            f"model {folder}: its {heads} key-value heads cannot be divided over {devices} devices; choose a "
            "devices_per_replica that divides them"
        )
    settings: dict[str, Any] = {"device_map": {"": device}} if quantised_by(folder) is not None else {}
    if devices > 1:
        settings = {"distributed_config": DistributedConfig(tp_size=devices, tp_plan="auto")}
    model = from_pretrained(auto_class(folder), folder, dtype=dtype, **settings)
    if not settings:
        model.to(device)
    return model.eval()


def from_pretrained(auto: Any, folder: Path, **settings: Any) -> Any:
    """What transformers' class makes of a folder, with remote code off. Raises `RequestError` where it cannot."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return auto.from_pretrained(folder, trust_remote_code=False, **settings)
    except UnpicklingError as error:  # torch's own words say how to run what is in there
        raise RequestError(
            f"model {folder}: a .bin file there holds more than numbers, or is damaged; use weights in safetensors"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise RequestError(f"model {folder} cannot be loaded: {' '.join(str(error).split())[:200]}") from error


def auto_class(folder: Path) -> Any:
    """transformers' factory for what the model's configuration says it predicts; if nothing, the next token."""
    import transformers

    architecture = architecture_of(load_config(folder))
    if is_masked_lm(architecture):
        return transformers.AutoModelForMaskedLM
    if takes_features(architecture):
        from distributed_kd.models.feature_classifier import register

        register()
        return transformers.AutoModelForTokenClassification
    if is_text_classifier(architecture):
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForCausalLM


def quantised_by(folder: Path) -> str | None:
    """The method that the model's configuration names, as `bitsandbytes`; None where it is not quantised."""
    said = getattr(load_config(folder), "quantization_config", None)
    return None if said is None else str(said["quant_method"])
