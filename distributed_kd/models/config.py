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
