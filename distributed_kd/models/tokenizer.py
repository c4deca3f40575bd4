"""Tokenizers, and the fingerprint that says whether two of them are one.

Cached ids mean nothing under another tokenizer, so every artifact carries the hash and every stage compares it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distributed_kd.errors import RequestError
from distributed_kd.models.config import architecture_of, load_config, takes_features
from distributed_kd.recipe import Recipe
from distributed_kd.store.digest import canonical_json, sha256

# Padding and truncation are settings of a call, and the post-processor only frames a text.
_NOT_THE_VOCABULARY = ("padding", "truncation", "post_processor")


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"no tokenizer can be loaded from {folder}: {reason}") from error


def tokenizer_of(recipe: Recipe) -> tuple[str, str | None]:
    """(reference, revision) of the tokenizer of a recipe's corpus: its own, the first teacher's, or the student's."""
    if recipe.corpus.tokenizer is not None:
        return recipe.corpus.tokenizer, None
    if not recipe.teachers:
        return recipe.student.model or "student.config", None
    return recipe.teachers[0].model, recipe.teachers[0].revision


def tokenizer_sha256(tokenizer: Any) -> str:
    """The same for two tokenizers that turn text into the same ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sha256(canonical_json(tokenizer.get_vocab()))
    parts = json.loads(backend.to_str())
    return sha256(canonical_json({key: value for key, value in parts.items() if key not in _NOT_THE_VOCABULARY}))


def inputs_sha256(folder: Path) -> str:
    """Of what goes into a model: its tokenizer, or the number of features and classes where positions are no tokens."""
    config = load_config(folder)
    if takes_features(architecture_of(config)):
        return features_sha256(config)
    return tokenizer_sha256(load_tokenizer(folder))


def features_sha256(config: Any) -> str:
    return sha256(canonical_json({"features": config.features, "classes": config.num_labels}))


def copy_tokenizer(folder: Path, target: Path) -> None:
    """Of the model in `folder`, where it has one."""
    if not takes_features(architecture_of(load_config(folder))):
        load_tokenizer(folder).save_pretrained(target)


def beginning_of_document(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer itself puts before a text: [bos] for Llama, [] for GPT-2 and SmolLM."""
    return list(tokenizer("").input_ids)


def end_of_document(tokenizer: Any, name: str) -> int:
    if tokenizer.eos_token_id is None:
        raise RequestError(f"the tokenizer of {name} has no end-of-text token, so documents cannot be told apart")
    return int(tokenizer.eos_token_id)
