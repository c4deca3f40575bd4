"""Writes `docs/recipe-keys.md`, every key of a recipe, from the models that check it: `python docs/recipe_keys.py`."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distributed_kd.recipe import Recipe
from distributed_kd.recipe.section import section_of

PAGE = Path(__file__).with_name("recipe-keys.md")
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "nothing"}


def page() -> str:
    lines = [
        "# The keys of a recipe",
        "",
        "Made by `python docs/recipe_keys.py` from the models in `distributed_kd/recipe/`. Any key can be given",
        "after the recipe on the command line, as `KEY.PATH=VALUE`; an unknown one is an error that names the nearest.",
    ]
    sections = {name: field for name, field in Recipe.model_fields.items() if section_of(field.annotation)}
    plain = {name: field for name, field in Recipe.model_fields.items() if name not in sections}
    lines += ["", *_table(plain, Recipe.units)]
    for name, field in sections.items():
        model = section_of(field.annotation)
        assert model is not None
        is_list = get_origin(field.annotation) is list
        lines += ["", f"## {name}{' (a list)' if is_list else ''}", ""]
        lines += [_sentence(field.description), ""] if field.description else []
        lines += _table(model.model_fields, getattr(model, "units", {}))
        for inner, own in model.model_fields.items():
            nested = section_of(own.annotation)
            if nested is not None:
                lines += ["", f"### {name}.{inner}", "", *_table(nested.model_fields, getattr(nested, "units", {}))]
    return "\n".join(lines) + "\n"


def _table(fields: dict[str, FieldInfo], units: dict[str, str]) -> list[str]:
    rows = ["| key | kind | unit | default | |", "|---|---|---|---|---|"]
    for name, field in fields.items():
        kind = _kind(field.annotation, field.metadata).replace("|", "\\|")
        said = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{name}` | {kind} | {units.get(name, '')} | {_default(field)} | {said} |")
    return rows


def _kind(annotation: Any, metadata: list[Any] | None = None) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0], [bound for field in inner[1:] for bound in getattr(field, "metadata", [field])])
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(one, metadata) for one in inner if one is not type(None))
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} of {_kind(inner[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "keys of its own"
    return " ".join(filter(None, [_NAMES.get(annotation, str(annotation)), *map(_bound, metadata or [])]))


def _bound(bound: Any) -> str:
    for name, word in (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below")):
        if getattr(bound, name, None) is not None:
            return f"{word} {getattr(bound, name):g}"
    return ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value is None or value in ("", [], {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return f"{text[0].upper()}{text[1:]}".rstrip(".") + "."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
