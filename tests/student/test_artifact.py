"""What a student is made from: all that decides its weights, and keys that came later only where they are said."""

from __future__ import annotations

from typing import Any

import pytest

from distributed_kd.recipe import parse
from distributed_kd.student.artifact import made_from_of
from tests.test_recipe import LORA, MINIMAL, changed


def made_from(data: dict[str, Any]) -> dict[str, Any]:
    return made_from_of(parse(data), "cache")


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
