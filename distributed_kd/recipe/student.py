"""`student`: what is trained, and where its weights begin."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from distributed_kd.recipe.section import Positive, Section


class Lora(Section):
    units: ClassVar[dict[str, str]] = {"rank": "columns", "alpha": "factor", "dropout": "share"}
    rank: Positive = Field(description="columns of a layer's two adapter matrices")
    alpha: float = Field(gt=0.0, description="a layer's adapter is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of an adapter's input that is left out, in training")
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] | None = Field(
        None,
        description="ends of the names of the layers that get an adapter, or all-linear: every linear one but the "
        "head; what peft has for the architecture when not given",
    )
    merge: bool = Field(False, description="export a plain model with the adapters added to its weights")


class Student(Section):
    units: ClassVar[dict[str, str]] = {"layers": "layers", "classes": "classes"}
    model: str | None = Field(None, description="path or hub id whose weights (or configuration) to start from")
    config: dict[str, Any] | None = Field(
        None,
        description="random: a configuration in `model`'s place, of model_type feature_classifier: its features, "
        "num_labels, context, hidden_sizes and dropout",
    )
    init: Literal["weights", "teacher_layers", "random"] = Field(
        "weights",
        description="weights: those of `model`; teacher_layers: some of the first teacher's layers; "
        "random: the configuration of `model`, fresh weights",
    )
    layers: Positive | list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="teacher_layers: which (a list), or how many evenly spread"
    )
    architecture: Literal["distilbert"] | None = Field(
        None,
        description="teacher_layers: the teacher's own when not given; distilbert: a DistilBERT of a BERT's layers",
    )
    classes: Positive | None = Field(
        None, description="weights, classification of texts: of the fresh head of a `model` that has none for it"
    )
    freeze: list[str] = Field(
        default_factory=list, description="embeddings, layers.I, layers.I-J, or the beginning of a parameter's name"
    )
    lora: Lora | None = Field(None, description="train low-rank adapters, through peft, and nothing else")

    @model_validator(mode="after")
    def _start_is_given(self) -> Student:
        if self.init == "teacher_layers":
            if self.layers is None:
                raise ValueError("init: teacher_layers needs `layers`: a count or a list of layer numbers")
            if self.model is not None:
                raise ValueError("give either `model` or init: teacher_layers, not both")
        elif self.config is not None:
            if self.init != "random" or self.model is not None:
                raise ValueError("`config` stands in the place of `model`, with init: random")
            if self.config.get("model_type") != "feature_classifier":
                raise ValueError("`config` is for model_type: feature_classifier; of others give a folder in `model`")
        elif self.model is None:
            raise ValueError(f"init: {self.init} needs `model`: a path or hub id")
        for key in ("layers", "architecture"):
            if self.init != "teacher_layers" and getattr(self, key) is not None:
                raise ValueError(f"`{key}` goes with init: teacher_layers")
        if self.init != "weights" and self.classes is not None:
            raise ValueError("`classes` goes with init: weights")
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> Student:
        if self.lora is not None and self.freeze:
            raise ValueError(
                "`freeze` does not go with `lora`, which trains its adapters alone; choose where they are with "
                "lora.target_modules"
            )
        if self.lora is not None and self.init == "random" and not self.lora.merge:
            raise ValueError("init: random leaves no folder for adapters to be opened on; set lora.merge")
        return self
