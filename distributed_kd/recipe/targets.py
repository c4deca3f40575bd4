"""`targets`: which of a teacher's logits are kept for a position."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from distributed_kd.recipe.section import Positive, Section

HiddenDtype = Literal["float16", "bfloat16", "float32"]


class Hidden(Section):
    units: ClassVar[dict[str, str]] = {"layer": "layer number"}
    layer: int = Field(
        -1,
        description="which, as transformers numbers them: 0 the embeddings, n those after n layers, -1 the last ones",
    )
    dtype: HiddenDtype = Field("float16", description="that they are kept in")


class Targets(Section):
    units: ClassVar[dict[str, str]] = {
        "k": "ids", "p": "probability", "draws": "ids", "draw_temperature": "temperature", "seed": "any number",
        "temperatures": "temperature",
    }  # fmt: skip
    method: Literal["top_k", "top_p", "sample", "full"] = Field(
        "top_k",
        description="top_k: the k most probable ids; top_p: the most probable ones that hold p together, at most k; "
        "sample: ids drawn by their probability, with their counts; full: every id, for small vocabularies",
    )
    k: Positive = Field(64, description="top_k, top_p: ids kept for a position, at most")
    p: float | None = Field(None, gt=0.0, le=1.0, description="top_p: mass that the kept ids reach at T = 1")
    draws: Positive | None = Field(None, description="sample: ids drawn for a position, with replacement")
    draw_temperature: float | None = Field(
        None, gt=0.0, description="sample: temperature that ids are drawn at; the first of `temperatures` if not given"
    )
    seed: int = Field(0, description="sample: another seed draws other ids")
    temperatures: list[Annotated[float, Field(gt=0.0)]] = Field(
        [1.0], min_length=1, description="temperatures at which the tail mass is kept exactly"
    )
    mean: Literal["arithmetic", "geometric"] = Field(
        "arithmetic", description="of several teachers: of their probabilities, or of their logits"
    )
    hidden: Hidden | None = Field(
        None, description="keep the teacher's hidden state at each scored position too, for `objective.cosine`"
    )

    @model_validator(mode="after")
    def _method_has_its_keys(self) -> Targets:
        for key, method in (("p", "top_p"), ("draws", "sample"), ("draw_temperature", "sample")):
            if self.method == method and key != "draw_temperature" and getattr(self, key) is None:
                raise ValueError(f"method {method} needs `{key}`")
            if self.method != method and getattr(self, key) is not None:
                raise ValueError(f"`{key}` goes with method {method}, not with {self.method}")
        return self

    @property
    def drawn_at(self) -> float:
        return self.temperatures[0] if self.draw_temperature is None else self.draw_temperature

    @property
    def are_weighted(self) -> bool:
        """Whether ids are drawn at another temperature than one of those listed, and so carry importance weights."""
        return self.method == "sample" and self.temperatures != [self.drawn_at]

    def keeps(self, vocabulary: int) -> int:
        """Ids kept for a position at most, of so many."""
        if self.method == "full":
            return vocabulary
        return min(self.draws, vocabulary) if self.draws is not None else self.k

    def made_from(self) -> dict[str, Any]:
        """What decides which targets are kept: the keys of the method, and of hidden states where they are kept."""
        own = {"top_k": {"k"}, "top_p": {"k", "p"}, "sample": {"draws", "seed"}, "full": set()}
        keys = self.model_dump(mode="json", include={"method", "temperatures"} | own[self.method])
        hidden = {} if self.hidden is None else {"hidden": self.hidden.model_dump(mode="json")}
        return keys | ({"draw_temperature": self.drawn_at} if self.method == "sample" else {}) | hidden
