"""The whole line on conversations: what the assistant says is captured, trained on and scored, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_kd.cache import open as cache_of
from tests import toys
from tests.commands import dkd, write_recipe

pytestmark = pytest.mark.slow


def test_the_line_runs_on_conversations(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    teacher = toys.save_model(tmp_path / "teacher", layers=2, seed=1)
    student = toys.save_model(tmp_path / "student", layers=1, seed=2)
    for folder in (teacher, student):
        toys.save_tokenizer(folder, chat_template=toys.CHAT_TEMPLATE)
    source = toys.write_conversations(tmp_path / "x.jsonl")
    source.write_text(source.read_text() + '\n{"messages": [{"role": "user", "content": "w1"}]}\n')
    toy_recipe["corpus"] |= {
        "source": str(source), "task": "chat", "packing": "isolate", "sequence_length": 32, "development_fraction": 0.0,
        "validation_fraction": 0.3,
    }  # fmt: skip
    toy_recipe["teachers"] = [{"model": str(teacher), "dtype": "float32"}]
    toy_recipe["student"] = {"model": str(student)}
    toy_recipe["baseline"] = "off"
    recipe = write_recipe(tmp_path, toy_recipe)
    done = dkd("prepare", recipe)
    assert done.returncode == 0, done.stderr
    assert "prepare: 1 conversation in which the assistant says nothing left out" in done.stderr
    done = dkd("run", recipe, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["models"]["student"]["kl_from_teacher"] > 0.0
    assert report["models"]["teacher"]["kl_from_teacher"] == pytest.approx(0.0, abs=1e-6)

    cache = cache_of(str(tmp_path / "work" / "cache"))
    scored = 0
    for row in (cache[place] for place in range(len(cache))):
        assert len(row.targets) == row.sequence.positions
        labels = row.sequence.labels[row.sequence.loss_mask]
        assert not np.isin(labels, (62, 63)).any(), "who speaks is never predicted"
        scored += row.sequence.positions
    assert 0 < scored < sum(len(cache[place].sequence.input_ids) for place in range(len(cache)))
    exported = json.loads((tmp_path / "work" / "student" / "export" / "tokenizer_config.json").read_text())
    saved = tmp_path / "work" / "student" / "export" / "chat_template.jinja"
    assert (saved.read_text() if saved.exists() else exported["chat_template"]) == toys.CHAT_TEMPLATE
