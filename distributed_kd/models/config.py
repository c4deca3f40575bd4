"""What a model's configuration says, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distributed_kd.errors import RequestError


def load_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"model {folder}: its configuration cannot be read: {' '.join(str(error).split())[:200]}"
        ) from error


def longest_sequence(config: Any) -> int | None:
    """Positions the model was built for; None where it has no bound."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def vocabulary_size(config: Any) -> int:
    return int(config.get_text_config().vocab_size)


def architecture_of(config: Any) -> str:
    """The name of transformers' class that the weights are of; "" where the configuration says none."""
    return (getattr(config, "architectures", None) or [""])[0]


def is_masked_lm(architecture: str) -> bool:
    """Whether transformers' class of that name predicts masked tokens."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()


def refuse_other_task(config: Any, name: str, task: str) -> None:
    """Raises `RequestError` where the model's configuration says that it predicts something else than `corpus.task`."""
    architecture = architecture_of(config)
    if is_masked_lm(architecture) != (task == "masked_lm"):
        fits = "masked_lm" if task != "masked_lm" else "causal_lm or chat"
        raise RequestError(
            f"model {name} is a {architecture or 'causal language model'}, which does not go with corpus.task: {task}; "
            f"choose {fits}, or another model"
        )
