"""A student of the teacher's layers, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_kd.errors import RequestError
from distributed_kd.recipe import parse
from distributed_kd.student.build import load_student, student_folder, write_initial_weights
from tests import toys


@pytest.fixture
def recipe(toy_recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "bert").mkdir()
    bert = toys.save_masked_model(tmp_path / "bert", layers=3, seed=1)
    toy_recipe["teachers"] = [{"model": str(bert), "dtype": "float32"}]
    toy_recipe["corpus"] |= {"task": "masked_lm", "packing": "none"}
    toy_recipe["student"] = {"init": "teacher_layers", "layers": 2}
    return toy_recipe


def test_a_bert_and_a_distilbert_of_the_same_layers_compute_the_same(recipe: dict[str, Any], tmp_path: Path) -> None:
    logits = {}
    for architecture in (None, "distilbert"):
        recipe["student"]["architecture"] = architecture
        recipe["workdir"] = str(tmp_path / str(architecture))
        student = load_student(parse(recipe), student_folder(parse(recipe))).eval()
        with torch.no_grad():
            logits[type(student).__name__] = student(input_ids=torch.arange(24).reshape(2, 12)).logits
    torch.testing.assert_close(logits["DistilBertForMaskedLM"], logits["BertForMaskedLM"], atol=6e-6, rtol=0.0)


def test_initial_weights_of_another_architecture_are_refused(recipe: dict[str, Any]) -> None:
    write_initial_weights(parse(recipe))
    recipe["student"]["architecture"] = "distilbert"
    with pytest.raises(RequestError, match="was made of other layers, another teacher or for another architecture"):
        write_initial_weights(parse(recipe))


def test_a_distilbert_of_no_bert_is_refused(recipe: dict[str, Any], toy_teacher: Path) -> None:
    recipe["student"]["architecture"] = "distilbert"
    recipe["teachers"] = [{"model": str(toy_teacher)}]
    with pytest.raises(RequestError, match="is of the kind 'llama'"):
        write_initial_weights(parse(recipe))
