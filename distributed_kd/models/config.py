"""What a model's configuration says, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed_kd.errors import RequestError
from distributed_kd.models.locate import cache_folder
from distributed_kd.recipe import Corpus, Student
from distributed_kd.store.digest import canonical_json, sha256
from distributed_kd.store.whole import whole_file

_FEATURE_CLASSIFIER = "FeatureClassifier"


def load_config(folder: Path) -> Any:
    from transformers import AutoConfig

    from distributed_kd.models.feature_config import register

    register()
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
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


def hidden_size(config: Any) -> int:
    """Numbers in a hidden state."""
    return int(config.get_text_config().hidden_size)


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
    return architecture in _heads("masked_lm").values()


def is_text_classifier(architecture: str) -> bool:
    """Whether transformers' class of that name gives a text one of some classes."""
    return architecture in _heads("classification").values()


def takes_features(architecture: str) -> bool:
    """Whether a position is a vector of numbers to it, and no token."""
    return architecture == _FEATURE_CLASSIFIER


def is_classifier(architecture: str) -> bool:
    return takes_features(architecture) or is_text_classifier(architecture)


def lacks_head(config: Any, task: str) -> bool:
    """Whether it is of a body alone, or for a classifier with another head, where transformers has the task's."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    architecture = architecture_of(config)
    is_body = architecture == MODEL_MAPPING_NAMES.get(config.model_type)
    is_other = task == "classification" and is_masked_lm(architecture)
    return (is_body or is_other) and config.model_type in _heads(task)


def config_of_student(config: Any, student: Student, task: str) -> Any:
    """What `student.model` is once it is a student: with the fresh head that it gets where it lacks the task's.

    Raises `RequestError` where `student.classes` is lacking, or is there without need.
    """
    if student.init != "weights" or not lacks_head(config, task):
        if student.classes is not None:
            raise RequestError(
                f"student.model {student.model} is a {architecture_of(config)}, whose head is its own: leave out "
                "student.classes"
            )
        return config
    if task == "classification":
        if student.classes is None:
            raise RequestError(
                f"student.model {student.model} is a {architecture_of(config)}, which has no head for corpus.task: "
                f"{task}; say of how many classes in student.classes"
            )
        config.num_labels = student.classes
    config.architectures = [_heads(task)[config.model_type]]
    return config


def _heads(task: str) -> Mapping[str, str]:
    """transformers' class by the kind of a model, of the tasks that it has a head of its own for."""
    from transformers.models.auto import modeling_auto

    if task == "masked_lm":
        return modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES if task == "classification" else {}


def refuse_other_task(config: Any, name: str, corpus: Corpus) -> None:
    """Raises `RequestError` where the model's configuration says that it predicts something else than the corpus."""
    architecture = architecture_of(config)
    if lacks_head(config, corpus.task):
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
