"""An encoder as many are published, without the head that a task needs: it gets a fresh one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distributed_kd.errors import RequestError
from distributed_kd.models.load import from_pretrained


def open_for_task(folder: Path, task: str, seed: int, classes: int | None = None) -> Any:
    """transformers' model for `corpus.task`, masked_lm or classification, in float32 and eval mode.

    classes: of a classifier; as many as its configuration says if not given. What the folder does not have of the head
    is fresh, the same for the same seed. Raises `RequestError` where weights of its body are not there.
    """
    import transformers
    from transformers.utils import logging

    auto: Any = transformers.AutoModelForMaskedLM
    if task == "classification":
        auto = transformers.AutoModelForSequenceClassification
    settings: dict[str, Any] = {} if classes is None else {"num_labels": classes}
    torch.manual_seed(seed)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else it calls a checkpoint without a head corrupted
    try:
        model, loading = from_pretrained(auto, folder, dtype=torch.float32, output_loading_info=True, **settings)
    finally:
        logging.set_verbosity(verbosity)
    body = f"{model.base_model_prefix}."  # a pooler is what a classifier's head reads
    lacking = sorted(name for name in loading["missing_keys"] if name.startswith(body) and ".pooler." not in name)
    if lacking:
        raise RequestError(f"model {folder}: no weights for {lacking[0]} in its files")
    return model.eval()
