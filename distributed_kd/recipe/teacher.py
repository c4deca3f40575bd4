"""`teachers`: whose distributions are distilled."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from distributed_kd.recipe.section import Positive, Section


class Teacher(Section):
    units: ClassVar[dict[str, str]] = {"weight": "factor", "devices_per_replica": "devices"}
    model: str = Field("", description="path, hub id, package:NAME or a .gguf file; the student of `recipe` if given")
    recipe: str | None = Field(None, description="a recipe whose student is this teacher, trained before anything else")
    overrides: list[str] = Field(default_factory=list, description="of that recipe, as KEY.PATH=VALUE")
    revision: str | None = Field(None, description="of a hub id: branch, tag or commit")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the device computes in it, else float32"
    )
    weight: float = Field(1.0, gt=0.0, description="of several teachers: this one's in the mean, in proportion")
    devices_per_replica: Positive = Field(
        1, description="divide the teacher over so many devices of a host, by transformers' plan for its architecture"
    )

    @model_validator(mode="after")
    def _is_named(self) -> Teacher:
        if not self.model and self.recipe is None:
            raise ValueError("a teacher needs `model`, or the `recipe` that makes it")
        return self
