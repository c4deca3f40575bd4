"""LoRA adapters (Hu et al., 2021), through peft: put on a model to be trained, saved, and opened on their base.

A folder of adapters is peft's own: `adapter_config.json` names the base, `adapter_model.safetensors` has the adapters
alone. What evaluates a model merges them into the base's weights, and then knows nothing of peft.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from distributed_kd.errors import RequestError
from distributed_kd.models.config import is_masked_lm
from distributed_kd.models.locate import locate
from distributed_kd.recipe import Lora
from distributed_kd.store.filesystem import Store
from distributed_kd.store.folder import as_local_folder

CONFIG = "adapter_config.json"
_NAME = "default"  # peft's own of a model's first adapter


def add_adapters(model: Any, lora: Lora, seed: int) -> Any:
    """The model in peft's wrapper, with adapters that do nothing yet and alone are trained.

    Raises `RequestError` without peft, where a name is of no layer, and for an adapter on the embeddings.
    """
    peft = _peft("student.lora")
    architecture = type(model).__name__
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type=None if is_masked_lm(architecture) else peft.TaskType.CAUSAL_LM,
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():  # of tied embeddings, which are refused below
        warnings.simplefilter("ignore")
        try:
            model = peft.get_peft_model(model, config)
        except ValueError as error:
            raise RequestError(
                f"student.lora.target_modules {lora.target_modules}: {' '.join(str(error).split())[:200]} "
                f"({architecture}); name layers of it, or all-linear"
            ) from error
    _refuse_names_of_nothing(model, lora)
    if hasattr(model.get_base_model().get_input_embeddings(), "base_layer"):
        raise RequestError(
            f"student.lora.target_modules {lora.target_modules}: {architecture}'s embeddings would get an adapter, "
            "which cannot be merged where its head is tied to them; leave them out"
        )
    return model


def _refuse_names_of_nothing(model: Any, lora: Lora) -> None:
    """peft is content with one name that is of a layer."""
    if not isinstance(lora.target_modules, list):
        return
    found = [f".{name}" for name in model.targeted_module_names]
    for name in lora.target_modules:
        if not any(layer.endswith(f".{name}") for layer in found):
            raise RequestError(f"student.lora.target_modules: the student has no layer {name!r}")


def save(model: Any, weights: dict[str, torch.Tensor], base: str, target: Path) -> None:
    """Writes the wrapped model's adapters, of these weights, and the name of their base."""
    config = model.peft_config[_NAME]
    config.base_model_name_or_path = base
    config.target_modules = sorted(config.target_modules)  # a set's order changes from run to run
    model.save_pretrained(target, state_dict=weights, save_embedding_layers=False)


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).exists() and not (folder / "config.json").exists()


def base_of(folder: Path) -> Path:
    """The local folder of the model that an adapter is for. Raises `RequestError` where it is gone."""
    name = json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]
    if "://" in name:
        parent, _, last = name.rpartition("/")
        return as_local_folder(Store(parent), last)
    try:
        return locate(name)
    except RequestError as error:
        raise RequestError(f"{folder} holds an adapter, whose base cannot be had: {error}") from error


def open_merged(base: Any, folder: Path) -> Any:
    """The base with the folder's adapters added to its weights, as a model of transformers'."""
    peft = _peft(f"the adapter in {folder}")
    with warnings.catch_warnings():  # peft asks transformers for what it calls otherwise from v6 on
        warnings.simplefilter("ignore", FutureWarning)
        return peft.PeftModel.from_pretrained(base, folder).merge_and_unload()


def _peft(asker: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise RequestError(f"{asker} needs peft, which is not installed: pip install 'distributed-kd[lora]'") from error
    return peft
