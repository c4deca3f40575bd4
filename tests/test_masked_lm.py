"""Masked language models through the same stages: masks drawn in prepare, targets at masked positions alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed_kd import cache, console
from distributed_kd.corpus.prepare import prepare
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Recipe, parse
from distributed_kd.store.filesystem import Store
from distributed_kd.teacher.capture import capture
from tests import toys
from tests.commands import dkd, write_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.save_masked_model(tmp_path_factory.mktemp("bert"), layers=3, seed=1)


@pytest.fixture
def recipe(toy_recipe: dict[str, Any], teacher: Path) -> dict[str, Any]:
    toy_recipe["teachers"] = [{"model": str(teacher), "dtype": "float32"}]
    toy_recipe["corpus"] |= {"task": "masked_lm", "packing": "none", "views": 3}
    return toy_recipe


def test_each_training_window_is_there_once_a_view_and_held_out_ones_once(
    recipe: dict[str, Any], ray_cluster: Any, tmp_path: Path
) -> None:
    done = prepare(parse(recipe))
    recipe["corpus"]["views"] = 1
    once = prepare(parse({**recipe, "workdir": str(tmp_path / "once")}))
    assert done.splits["train"].sequences == 3 * once.splits["train"].sequences
    assert done.splits["validation"].positions == once.splits["validation"].positions
    rows = [row for shard in range(done.splits["train"].end_shard) for row in _rows(recipe["workdir"], shard)]
    for views in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        whole = [np.where(view.loss_mask, view.labels, view.input_ids).tolist() for view in views]
        assert whole[0] == whole[1] == whole[2]  # one text
        assert whole[0][0] == 2 and whole[0][-1] == 3 and len(whole[0]) <= 16
    assert len({tuple(view.loss_mask.tolist()) for view in rows}) > 3


def test_texts_without_a_token_to_mask_are_refused(recipe: dict[str, Any], ray_cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "texts.jsonl").write_text(40 * (json.dumps({"text": 12 * "nobody "}) + "\n"))
    recipe["corpus"]["source"] = str(tmp_path / "unknown")
    with pytest.raises(RequestError, match="no train sequence with a token to mask came out of it; give more doc"):
        prepare(parse(recipe))


def test_a_text_without_a_token_to_mask_is_counted(
    recipe: dict[str, Any], ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    (tmp_path / "some").mkdir()
    texts = [*(f"w{number} w1 w2" for number in range(40)), "nobody nobody"]
    (tmp_path / "some" / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe["corpus"]["source"] = str(tmp_path / "some")
    done = prepare(parse(recipe))
    train, *held_out = (done.splits[name].sequences for name in ("train", "validation", "development"))
    assert train / 3 + sum(held_out) == 40
    assert said == ["prepare: 1 sequence without a token to mask left out"]


def test_targets_are_the_models_own_at_masked_positions(
    recipe: dict[str, Any], teacher: Path, ray_cluster: Any
) -> None:
    from transformers import AutoModelForMaskedLM

    recipe["capture"]["codec"] = "plain-1"
    parsed: Recipe = parse(recipe)
    manifest = prepare(parsed)
    capture(parsed)
    logits = cache.open(f"{parsed.workdir}/cache")
    model = AutoModelForMaskedLM.from_pretrained(teacher).eval()
    assert sum(row.sequence.positions for row in logits) == manifest.splits["train"].positions
    for row in [logits[0], logits[len(logits) - 1]]:
        with torch.no_grad():
            own = model(input_ids=torch.from_numpy(row.sequence.input_ids.astype(np.int64))[None]).logits[0]
        expected = own[torch.from_numpy(row.sequence.loss_mask)].log_softmax(1).topk(8)
        np.testing.assert_array_equal(row.targets.ids, expected.indices)
        log_p, _ = row.targets.log_probabilities(1.0)
        np.testing.assert_allclose(log_p, expected.values, atol=4e-3)  # float16 logits
        assert row.sequence.given_labels is not None


def test_a_model_of_the_other_kind_is_refused(recipe: dict[str, Any], toy_teacher: Path) -> None:
    recipe["corpus"] |= {"task": "causal_lm", "views": 1}
    with pytest.raises(RequestError, match=r"is a BertForMaskedLM, which does not go with corpus\.task: causal_lm"):
        prepare(parse(recipe))


def test_a_distilbert_of_the_teachers_layers_is_trained_and_scored(recipe: dict[str, Any], tmp_path: Path) -> None:
    """All four stages, two ranks under ZeRO-3; the student starts from two of three layers and ends as a folder.

    It learns from the teacher's hidden states too, which its baseline does not.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    recipe["student"] = {"init": "teacher_layers", "layers": [0, 2], "architecture": "distilbert"}
    recipe["targets"]["hidden"] = {"dtype": "bfloat16"}
    recipe["objective"]["cosine"] = 1.0
    recipe["trainer"] |= {"processes": 2, "deepspeed": {"zero_optimization": {"stage": 3}}, "micro_batch": 2}
    done = dkd("run", write_recipe(tmp_path, recipe))
    assert done.returncode == 0, done.stderr
    work = Path(recipe["workdir"])
    for name in ("init", "export"):
        student = AutoModelForMaskedLM.from_pretrained(work / "student" / name)
        assert type(student).__name__ == "DistilBertForMaskedLM" and student.config.num_hidden_layers == 2
        assert AutoTokenizer.from_pretrained(work / "student" / name).mask_token_id == 4
    report = json.loads((work / "report" / "report.json").read_text())
    assert report["models"]["student"]["kl_from_teacher"] > report["models"]["teacher"]["kl_from_teacher"] == 0.0
    assert report["retention"] is report["retention_interval"] is None  # this teacher is random and never right
    assert report["cache"]["hidden"] == {"layer": -1, "dtype": "bfloat16", "width": 32}
    assert report["cache"]["bytes_by_part"]["hidden"] > 40 * report["cache"]["positions"]
    student, baseline = (
        [json.loads(line) for line in (work / arm / "metrics.jsonl").read_text().splitlines()]
        for arm in ("student", "baseline")
    )
    for line in student:
        sum_of_terms = 0.5 * line["cross_entropy"] + 0.5 * 2.0**2 * line["divergence"] + line["cosine"]
        assert line["loss"] == pytest.approx(sum_of_terms, rel=1e-5)
    for name in ("loss", "cosine"):
        assert student[-1][name] < student[0][name]
    assert "cosine" not in baseline[0]


def _rows(workdir: str, shard: int) -> Any:
    return Sequences.open(Store(workdir)).read(shard)
