"""What every section of a recipe is: a frozen model that refuses keys it does not know. And how one is found."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    units: ClassVar[dict[str, str]] = {}  # of each key that is a number, for docs/recipe-keys.md


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model behind a key that has keys of its own, in a list or optional too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := section_of(one)) is not None), None)
