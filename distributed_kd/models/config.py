"""What a model's configuration says, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distributed_kd.errors import RequestError
from distributed_kd.models.locate import cache_folder
from distributed_kd.recipe import Corpus
from distributed_kd.store.digest import canonical_json, sha256
from distributed_kd.store.whole import whole_file

_FEATURE_CLASSIFIER = "FeatureClassifier"


def load_config(folder: Path) -> Any:
    from transformers import AutoConfig

    from distributed_kd.models.feature_config import register

    register()
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"model {folder}: its configuration cannot be read: {' '.join(str(error).split())[:200]}"
        ) from error


def folder_of_config(config: dict[str, Any]) -> Path:
    """A folder with this configuration and nothing else, for what opens a model's folder; the same for the same one."""
    data = canonical_json(config)
    folder = cache_folder() / "configs" / sha256(data)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(str(folder / "config.json")) as file:
        file.write(data)
    return folder


def longest_sequence(config: Any) -> int | None:
    """Positions the model was built for; None where it has no bound."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def vocabulary_size(config: Any) -> int:
    """How many outcomes it tells apart: token ids, or the classes of a classifier."""
    if is_classifier(architecture_of(config)):
        return int(config.num_labels)
    return int(config.get_text_config().vocab_size)


def architecture_of(config: Any) -> str:
    """The name of the class that the weights are of; "" where the configuration says none."""
    if config.model_type == "feature_classifier":
        return _FEATURE_CLASSIFIER
    return (getattr(config, "architectures", None) or [""])[0]


def is_masked_lm(architecture: str) -> bool:
    """Whether transformers' class of that name predicts masked tokens."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()


def is_text_classifier(architecture: str) -> bool:
    """Whether transformers' class of that name gives a text one of some classes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return architecture in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()


def takes_features(architecture: str) -> bool:
    """Whether a position is a vector of numbers to it, and no token."""
    return architecture == _FEATURE_CLASSIFIER


def is_classifier(architecture: str) -> bool:
    return takes_features(architecture) or is_text_classifier(architecture)


def lacks_head(config: Any, task: str) -> bool:
    """Whether the configuration is of the body alone of a model that transformers has for `corpus.task: masked_lm`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    is_body = architecture_of(config) == MODEL_MAPPING_NAMES.get(config.model_type)
    return is_body and task == "masked_lm" and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def refuse_other_task(config: Any, name: str, corpus: Corpus, may_lack_head: bool = False) -> None:
    """Raises `RequestError` where the model's configuration says that it predicts something else than the corpus."""
    architecture = architecture_of(config)
    if lacks_head(config, corpus.task):
        if may_lack_head:
            return
        raise RequestError(
            f"model {name} is a {architecture}, which has no head for corpus.task: {corpus.task}; train it one, as "
            "`student.model` of a recipe with `teachers: []`, or choose another model"
        )
    fits: tuple[str, ...]
    if is_masked_lm(architecture):
        fits = ("masked_lm",)
    elif takes_features(architecture):
        fits = ("classification", "frames")
    elif is_text_classifier(architecture):
        fits = ("classification",)
    else:
        fits = ("causal_lm", "chat")
    if corpus.task not in fits:
        raise RequestError(
            f"model {name} is a {architecture or 'causal language model'}, which does not go with corpus.task: "
            f"{corpus.task}; choose {' or '.join(fits)}, or another model"
        )
    if takes_features(architecture) != corpus.takes_features:
        kind = "features" if takes_features(architecture) else "texts"
        raise RequestError(
            f"model {name} is a {architecture}, which takes {kind}; {'set' if kind == 'features' else 'leave out'} "
            "corpus.features_column, or choose another model"
        )
