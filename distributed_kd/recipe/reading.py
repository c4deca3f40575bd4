"""Recipes read, validated and written, with the overrides of a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from distributed_kd.bundled import bundled
from distributed_kd.errors import RequestError
from distributed_kd.recipe.overrides import apply_override
from distributed_kd.recipe.refusals import one_line
from distributed_kd.recipe.whole import Recipe
from distributed_kd.store.failures import without_secrets


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Reads and validates a YAML recipe; `overrides` are `key.path=value` strings, values parsed as YAML.

    A `recipes/...` that is not there is the package's own of that name.
    """
    return _with_models(_load(path, overrides))


def _load(path: str | Path, overrides: list[str] | tuple[str, ...]) -> Recipe:
    try:
        text = _file(Path(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"recipe {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise RequestError(f"recipe {path} is not a mapping of keys to values")
    for override in overrides:
        apply_override(data, override)
    return _validated(data, where=f"recipe {path}")


def _file(path: Path) -> Path:
    if path.exists() or path.parent != Path("recipes"):
        return path
    try:
        return bundled(str(path))
    except FileNotFoundError:
        return path


def makers(recipe: Recipe) -> list[Recipe]:
    """The recipes of those teachers that one makes, in order; each is a student's without such teachers of its own."""
    return [_maker(teacher.recipe, teacher.overrides) for teacher in recipe.teachers if teacher.recipe is not None]


def _maker(path: str, overrides: list[str]) -> Recipe:
    maker = _load(path, overrides)
    if any(own.recipe is not None for own in maker.teachers):
        raise RequestError(
            f"recipe {path} makes a teacher, so its own teachers cannot have a `recipe`; name their `model`"
        )
    return maker


def parse(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validates a mapping. Raises `RequestError`: one line that names `where`, the key and the remedy."""
    return _with_models(_validated(data, where))


def _validated(data: dict[str, Any], where: str) -> Recipe:
    refuse_secrets(data, where)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RequestError(f"{where}: {one_line(error)}") from error


def _with_models(recipe: Recipe) -> Recipe:
    """With the places of the weights of those teachers that a recipe makes."""
    teachers = [
        teacher
        if teacher.recipe is None or teacher.model
        else teacher.model_copy(update={"model": f"{_maker(teacher.recipe, teacher.overrides).workdir}/student/export"})
        for teacher in recipe.teachers
    ]
    return recipe.model_copy(update={"teachers": teachers})


def refuse_secrets(data: Any, where: str, key: str = "") -> None:
    """A recipe is written beside each artifact and sent to clusters: nothing in it may open a store.

    Raises `RequestError` that names the key.
    """
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for name, value in pairs:
        refuse_secrets(value, where, f"{key}.{name}".lstrip("."))
    if isinstance(data, str) and without_secrets(data) != data:
        raise RequestError(
            f"{where}: {key}: a password or a signature in a URL would be written down; leave it out and give it in "
            "the environment"
        )


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
