"""`baseline` and `evaluate`: what the student is compared with, and on which documents."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from distributed_kd.recipe.section import Positive, Section


class Baseline(Section):
    """The same student, initialisation, data, order and steps on hard labels alone; only what differs is said."""

    units: ClassVar[dict[str, str]] = {"learning_rate": "a step", "global_batch": "sequences"}
    learning_rate: float | None = Field(None, gt=0.0, description="the trainer's when not given")
    global_batch: Positive | None = Field(
        None,
        description="the trainer's when not given; where `corpus.labelled_fraction` is f, 1/f times as many sequences "
        "hold as many labels as a batch of a teacher that was trained on labels alone",
    )


class Evaluate(Section):
    units: ClassVar[dict[str, str]] = {
        "bootstrap": "resamples",
        "price_hour": "any currency, an hour",
        "examples": "positions",
    }
    split: Literal["validation", "development"] = Field(
        "validation", description="whose documents are scored; development, to choose settings by"
    )
    bootstrap: Positive = Field(10_000, description="resamples of the documents behind each interval")
    price_hour: float | None = Field(
        None, ge=0.0, description="of one device, in any currency: the report then says what each stage cost"
    )
    examples: int = Field(
        3,
        ge=0,
        description="held-out positions that the report shows, with their text: so many where the student is furthest "
        "from the teacher, as many where it is nearest, and as many drawn; 0: none",
    )
