"""pydantic's account of what is wrong with a recipe as one line that names the key and the remedy."""

from __future__ import annotations

import difflib

from pydantic import BaseModel, ValidationError

from distributed_kd.recipe.section import section_of
from distributed_kd.recipe.whole import Recipe


def one_line(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    # A union adds the name of the branch it tried to the location; those are not keys of the recipe.
    location = [str(part) for part in first["loc"] if "[" not in str(part) and str(part) not in ("str", "int", "float")]
    key = ".".join(location) or "recipe"
    if first["type"] == "extra_forbidden":
        known = _known_keys([name for name in location[:-1] if not name.isdigit()])
        nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.0)
        message = f"unknown key {key}; the nearest known one is {'.'.join([*location[:-1], *nearest])}"
    elif first["type"] == "missing":
        message = f"{key} is missing"
    else:
        text = first["msg"].removeprefix("Value error, ")
        given = f" (given: {first['input']!r})" if isinstance(first["input"], str | int | float) else ""
        message = f"{key}: {text[0].lower() + text[1:]}{given}"
    return message + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _known_keys(location: list[str]) -> list[str]:
    model: type[BaseModel] | None = Recipe
    for name in location:
        field = model.model_fields.get(name) if model is not None else None
        model = section_of(field.annotation) if field is not None else None
    return list((model or Recipe).model_fields)
