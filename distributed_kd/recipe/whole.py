"""A recipe: its sections, and what they ask of each other."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from distributed_kd.recipe.capture import Capture
from distributed_kd.recipe.corpus import Corpus
from distributed_kd.recipe.evaluate import Baseline, Evaluate
from distributed_kd.recipe.objective import Objective
from distributed_kd.recipe.section import Section
from distributed_kd.recipe.student import Student
from distributed_kd.recipe.targets import Targets
from distributed_kd.recipe.teacher import Teacher
from distributed_kd.recipe.trainer import Trainer


class Recipe(Section):
    name: str = Field(min_length=1, description="what the report calls the run")
    workdir: str = Field(description="folder or bucket, s3://..., that every artifact lies under")
    corpus: Corpus
    teachers: list[Teacher] = Field(
        description="one; or several, whose mean is distilled; or none, for a student of hard labels alone"
    )
    targets: Targets = Targets()
    capture: Capture = Capture()
    student: Student
    objective: Objective = Objective()
    trainer: Trainer
    baseline: Baseline | None = Field(
        default_factory=Baseline, description="the same student on hard labels alone, with what is said here; off: none"
    )
    evaluate: Evaluate = Evaluate()

    @field_validator("baseline", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return None if value is False or value == "off" else value

    @model_validator(mode="after")
    def _baseline_batch_is_whole(self) -> Recipe:
        batch, micro = None if self.baseline is None else self.baseline.global_batch, self.trainer.micro_batch
        if batch is not None and batch % micro:
            raise ValueError(f"baseline.global_batch {batch} is not a multiple of trainer.micro_batch {micro}")
        return self

    @model_validator(mode="after")
    def _temperature_is_cached(self) -> Recipe:
        if self.objective.temperature not in self.targets.temperatures:
            raise ValueError(
                f"objective.temperature {self.objective.temperature:g} is not in targets.temperatures "
                f"{[float(t) for t in self.targets.temperatures]}; add it there or choose one of them"
            )
        return self

    @model_validator(mode="after")
    def _codec_keeps_the_targets(self) -> Recipe:
        codec, method = self.capture.codec, self.targets.method
        if codec == "dense-1" and method != "full":
            raise ValueError(f"capture.codec dense-1 goes with targets.method full, not {method}; choose compact-1")
        if codec == "compact-1" and method == "full":
            raise ValueError("capture.codec compact-1 is for targets of few ids; choose dense-1 with method full")
        if codec == "compact-1" and self.targets.are_weighted:
            raise ValueError(
                f"capture.codec compact-1 keeps counts, and ids drawn at T = {self.targets.drawn_at:g} for "
                f"{[float(t) for t in self.targets.temperatures]} carry weights; choose plain-1, or list one "
                "temperature and draw at it"
            )
        return self

    @model_validator(mode="after")
    def _is_right_in_the_mean_over_draws(self) -> Recipe:
        if self.targets.method == "sample":
            self.objective.refuse_drawn_targets()
        return self

    @model_validator(mode="after")
    def _classes_are_of_texts(self) -> Recipe:
        if self.student.classes is not None and (self.corpus.task != "classification" or self.corpus.takes_features):
            raise ValueError("student.classes goes with corpus.task classification of texts")
        return self

    @model_validator(mode="after")
    def _architecture_has_the_task(self) -> Recipe:
        if self.student.architecture is not None and self.corpus.task not in ("masked_lm", "classification"):
            raise ValueError(
                f"student.architecture {self.student.architecture} goes with corpus.task masked_lm and classification, "
                f"not with {self.corpus.task}"
            )
        return self

    @model_validator(mode="after")
    def _hidden_states_are_there(self) -> Recipe:
        if self.objective.cosine > 0.0 and self.targets.hidden is None:
            raise ValueError(
                f"objective.cosine {self.objective.cosine:g} needs the teacher's hidden states; set targets.hidden"
            )
        if self.targets.hidden is None:
            return self
        if len(self.teachers) != 1:
            raise ValueError(
                f"targets.hidden goes with one teacher, not with {len(self.teachers)}: those of several have no mean"
            )
        if self.corpus.is_of_rows:
            raise ValueError(
                f"targets.hidden goes with corpus.task causal_lm, chat and masked_lm, not with {self.corpus.task}"
            )
        return self

    @model_validator(mode="after")
    def _teachers_fit(self) -> Recipe:
        if len(self.teachers) > 1 and self.trainer.follow:
            raise ValueError("trainer.follow goes with one teacher: the mean of several is made when all are captured")
        if self.teachers:
            return self
        if self.objective.alpha > 0.0:
            raise ValueError(f"without teachers objective.alpha must be 0, not {self.objective.alpha:g}")
        if self.baseline is not None:
            raise ValueError("without teachers the student is what a baseline would be; set baseline: off")
        if self.student.init == "teacher_layers" or self.trainer.follow:
            raise ValueError("student.init: teacher_layers and trainer.follow need a teacher")
        return self

    def of_teacher(self, place: int) -> Recipe:
        """The recipe of the cache of one of several teachers, a folder in that of their mean."""
        capture = self.capture.model_copy(update={"folder": member_folder(self.capture.folder, place)})
        return self.model_copy(update={"teachers": [self.teachers[place]], "capture": capture})


def member_folder(folder: str, place: int) -> str:
    """Of the workdir, that the cache of one of several teachers is in, where their mean is in `folder`."""
    return f"{folder}/teacher-{place:02d}"
