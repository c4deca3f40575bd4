"""What a student is made from: all that decides its weights, and keys that came later only where they are said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.errors import RequestError
from distributed_kd.recipe import Student, parse
from distributed_kd.store.digest import fingerprint
from distributed_kd.student.artifact import StudentManifest, made_from_of, start_of
from tests import toys
from tests.test_recipe import LORA, MINIMAL, changed


def made_from(data: dict[str, Any]) -> dict[str, Any]:
    return made_from_of(parse(data), "cache", None)


def test_a_student_without_younger_keys_is_made_from_what_it_was_before_there_were_any() -> None:
    assert made_from(MINIMAL)["student"] == {"model": "student", "init": "weights", "layers": None, "freeze": []}


@pytest.mark.parametrize("change", [{}, {"rank": 9}, {"merge": True}, {"target_modules": "all-linear"}])
def test_adapters_are_part_of_what_it_is_made_from(change: dict[str, Any]) -> None:
    with_them = made_from(changed("student.lora", LORA | change))
    assert with_them != made_from(MINIMAL)
    assert (with_them == made_from(changed("student.lora", LORA))) == (not change)


def test_the_architecture_is_part_of_what_it_is_made_from() -> None:
    layers = {"init": "teacher_layers", "layers": 3}
    masked = changed("corpus.task", "masked_lm")
    distilbert = made_from({**masked, "student": layers | {"architecture": "distilbert"}})["student"]
    assert distilbert == made_from({**masked, "student": layers})["student"] | {"architecture": "distilbert"}


def test_another_model_under_the_same_name_is_another_start(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    said = {init: Student(model=str(folder), init=init) for init in ("weights", "random")}
    found = {}
    for seed in (1, 2):
        shutil.rmtree(folder, ignore_errors=True)
        toys.save_model(folder, layers=1, seed=seed)
        found[seed] = {init: start_of(student) for init, student in said.items()}
    assert found[1]["weights"] != found[2]["weights"]
    assert found[1]["random"] == found[2]["random"]  # whose weights are fresh ones
    assert start_of(Student(init="teacher_layers", layers=2)) is None
    recipe = parse(changed("student.model", str(folder)))
    made = [made_from_of(recipe, "cache", found[seed]["weights"]) for seed in (1, 2)]
    assert made[0] != made[1]
    # Where a finished student's start is gone, it was that one.
    finished = StudentManifest(
        made_from=made[1], fingerprint=fingerprint(made[1]), arm="student", steps=1, sequences_seen=1, parameters=1,
        trained_parameters=1, tokenizer_sha256="t",
    )  # fmt: skip
    shutil.rmtree(folder)
    assert start_of(said["weights"], finished) == found[2]["weights"]
    with pytest.raises(RequestError, match="there is no such folder"):
        start_of(said["weights"])
