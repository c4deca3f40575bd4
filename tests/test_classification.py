"""Classifiers through the same stages: images, frames of speech and texts, with teachers and without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from distributed_kd import cache, console, stages
from distributed_kd.cache.verify import verify
from distributed_kd.corpus.prepare import prepare
from distributed_kd.errors import RequestError
from distributed_kd.evaluate.evaluate import evaluate
from distributed_kd.models.load import load_model
from distributed_kd.recipe import parse
from distributed_kd.student.train import train
from distributed_kd.teacher.capture import capture
from tests import toys
from tests.commands import dkd, write_recipe

pytestmark = pytest.mark.slow
CLASSES, WIDTH = 4, 16
CONFIG = {
    "model_type": "feature_classifier", "features": WIDTH, "num_labels": CLASSES, "hidden_sizes": [32],
}  # fmt: skip
STUDENT = {"init": "random", "config": CONFIG}
TRAINER = {"processes": 1, "global_batch": 32, "micro_batch": 16, "steps": 60, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 images of 4 x 4, a bright row each: which one is the class."""
    drawn = np.random.default_rng(0)
    labels = drawn.integers(0, CLASSES, 400)
    pictures = drawn.normal(0.0, 0.4, (400, 4, 4))
    pictures[np.arange(400), labels] += 1.0
    file = tmp_path_factory.mktemp("images") / "images.parquet"
    table = {"image": list(pictures.reshape(400, WIDTH).astype(np.float32)), "label": labels, "document": range(400)}
    pq.write_table(pa.table(table), file)
    return file


@pytest.fixture
def recipe(images: Path, tmp_path: Path) -> dict[str, Any]:
    """Hard labels alone: what a teacher is made by."""
    return {
        "name": "images", "workdir": str(tmp_path / "work"),
        "corpus": {
            "source": str(images), "task": "classification", "features_column": "image", "shard_sequences": 64,
            "document_column": "document", "validation_fraction": 0.25,
        },
        "teachers": [], "student": STUDENT, "objective": {"alpha": 0.0}, "trainer": TRAINER, "baseline": "off",
        "capture": {"replicas": 1, "batch_tokens": 256}, "evaluate": {"bootstrap": 200},
    }  # fmt: skip


def test_an_ensemble_whose_members_a_recipe_makes_and_labels_that_are_all_wrong(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    """alpha 1 never reads the labels: every one of them is wrong here, and the baseline learns just that."""
    maker = write_recipe(tmp_path, recipe)
    members = [
        {"recipe": str(maker), "overrides": [f"workdir={tmp_path}/member-{seed}", f"trainer.seed={seed}"]}
        for seed in (1, 2)
    ]
    own = recipe | {
        "workdir": str(tmp_path / "both"), "teachers": members, "baseline": {},
        "targets": {"method": "full", "temperatures": [1.0, 2.0]}, "objective": {"alpha": 1.0, "temperature": 2.0},
    }  # fmt: skip
    own["corpus"] = own["corpus"] | {
        "label_noise": 1.0, "views": 2, "image_shape": [4, 4], "augment": ["noise", "mixup"],
    }  # fmt: skip
    (tmp_path / "own").mkdir()
    done = dkd("run", write_recipe(tmp_path / "own", own), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    models = report["models"]
    assert set(models) == {"teacher", "ensemble", "student", "baseline"} and len(report["members"]) == 2
    assert models["teacher"]["accuracy"] == np.mean([one["accuracy"] for one in report["members"]])
    assert min(models[name]["accuracy"] for name in ("teacher", "ensemble", "student")) > 0.8
    assert models["baseline"]["accuracy"] < 0.25  # less than by chance
    assert models["ensemble"]["kl_from_teacher"] == pytest.approx(0.0, abs=1e-6)
    assert models["student"]["kl_from_teacher"] > 0.001
    gain = models["student"]["accuracy"] - models["baseline"]["accuracy"]
    whole = models["ensemble"]["accuracy"] - models["baseline"]["accuracy"]
    assert report["transferred_share"] == pytest.approx(gain / whole)
    low, high = report["transferred_share_interval"]
    assert low <= report["transferred_share"] <= high

    logits = cache.open(f"{tmp_path}/both/cache")
    row = logits[0]
    teachers = [
        load_model(tmp_path / f"member-{seed}/student/export", torch.float32, torch.device("cpu")) for seed in (1, 2)
    ]
    with torch.no_grad():
        found = [model(torch.from_numpy(row.sequence.features)[None]).logits[0].double() for model in teachers]
    for temperature in (1.0, 2.0):
        mean = torch.stack([(own / temperature).softmax(dim=1) for own in found]).mean(dim=0)
        log_p, _ = row.targets.log_probabilities(temperature)
        order = np.argsort(row.targets.ids[0])
        np.testing.assert_allclose(np.exp(log_p[0][order]), mean[0].numpy(), atol=2e-3)
    again = dkd("run", tmp_path / "own" / "recipe.yaml", "--json")
    assert again.returncode == 0 and json.loads(again.stdout) == report, again.stderr


def test_frames_without_a_label_learn_from_the_teacher_alone(
    recipe: dict[str, Any], tmp_path: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    drawn = np.random.default_rng(1)
    lengths = drawn.integers(3, 30, 60)
    rows = [
        {
            "frames": drawn.normal(size=(length, 3)).tolist(),
            "labels": [-100 if number % 2 else int(value) for value in drawn.integers(0, CLASSES, length)],
            "document": f"said {number}",
        }
        for number, length in enumerate(lengths)
    ]
    file = tmp_path / "speech" / "frames.parquet"
    file.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), file)
    config = CONFIG | {"features": 3, "context": [-2, 0, 2]}
    teacher = tmp_path / "teacher"
    save_feature_classifier(teacher, config)
    own = recipe | {
        "corpus": {
            "source": str(file), "task": "frames", "features_column": "frames", "label_column": "labels",
            "document_column": "document", "sequence_length": 20, "shard_sequences": 16, "validation_fraction": 0.1,
        },
        "teachers": [{"model": str(teacher), "dtype": "float32"}], "targets": {"method": "full"},
        "capture": {"replicas": 1, "codec": "dense-1"}, "objective": {"alpha": 0.9}, "baseline": {},
        "student": {"init": "random", "config": config}, "trainer": TRAINER | {"global_batch": 8, "micro_batch": 4},
    }  # fmt: skip
    manifest = prepare(parse(own))
    split = manifest.splits["train"]
    assert 0 < split.unlabelled < split.positions and split.sequences > split.documents
    assert said == [f"prepare: {split.unlabelled} of {split.positions} train positions have no label"]
    capture(parse(own))
    assert verify(f"{own['workdir']}/cache", 1).all_good
    none = own | {"workdir": f"{own['workdir']}-none", "corpus": own["corpus"] | {"labelled_fraction": 0.0}}
    prepare(parse(none))
    capture(parse(none))
    with pytest.raises(RequestError, match=r"none of the \d+ training positions has a label: set objective\.alpha=1"):
        train(parse(none))
    train(parse(own))
    lines, of_labels = (
        [json.loads(line) for line in Path(own["workdir"], arm, "metrics.jsonl").read_text().splitlines()]
        for arm in ("student", "baseline")
    )
    assert np.mean([line["divergence"] for line in lines[-10:]]) < 0.7 * lines[0]["divergence"]
    # The same batches, of which the baseline has but the positions with a label; of these is either's cross-entropy.
    counts = [(of_both["positions"], of_own["positions"]) for of_both, of_own in zip(lines, of_labels, strict=True)]
    assert all(of_own <= of_both for of_both, of_own in counts)
    assert 0 < sum(of_own for _, of_own in counts) < sum(of_both for of_both, _ in counts)
    assert lines[0]["cross_entropy"] == pytest.approx(of_labels[0]["cross_entropy"], rel=1e-5)
    report = evaluate(parse(own))
    assert report["held_out"]["positions"] > 0 and report["models"]["student"]["kl_from_teacher"] < 1.0


def test_a_text_classifier_is_distilled(toy_recipe: dict[str, Any], tmp_path: Path, ray_cluster: Any) -> None:
    teacher = toys.save_text_classifier(tmp_path / "teacher", layers=2, seed=1, classes=3)
    student = toys.save_text_classifier(tmp_path / "student", layers=1, seed=2, classes=3)
    drawn = np.random.default_rng(0)
    rows = [
        {"text": " ".join(f"w{word}" for word in drawn.integers(0, 60, 12)), "label": int(drawn.integers(0, 3))}
        for _ in range(120)
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = toy_recipe | {
        "corpus": toy_recipe["corpus"] | {"source": str(tmp_path / "texts.jsonl"), "task": "classification"},
        "teachers": [{"model": str(teacher), "dtype": "float32"}], "student": {"model": str(student)},
        "targets": {"method": "full", "temperatures": [2.0]}, "objective": {"alpha": 0.5, "temperature": 2.0},
    }  # fmt: skip
    done = dkd("run", write_recipe(tmp_path, own), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"accuracy", "kl_from_teacher"} <= report["models"]["student"].keys()
    manifest = report["cache"]
    assert manifest["k"] == 3 and manifest["positions"] == manifest["sequences"] < 120
    with torch.no_grad():
        row = cache.open(f"{own['workdir']}/cache")[3]
        model = load_model(teacher, torch.float32, torch.device("cpu"))
        own_logits = model(input_ids=torch.from_numpy(row.sequence.input_ids.astype(np.int64))[None]).logits[0]
    log_p, _ = row.targets.log_probabilities(2.0)
    np.testing.assert_allclose(log_p[0], (own_logits / 2.0).log_softmax(0).numpy(), atol=4e-3)

    other = toys.save_text_classifier(tmp_path / "other", layers=1, seed=2, classes=4)
    both = parse(own | {"teachers": [*own["teachers"], {"model": str(other)}], "capture": {"folder": "both"}})
    with pytest.raises(RequestError, match=r"teacher \S+/other has 4 classes and the sequences 3; choose teachers of"):
        stages.cache(both)
    shutil.rmtree(Path(own["workdir"], "student"))
    with pytest.raises(RequestError, match="the student has 4 classes and the sequences 3"):
        train(parse(own | {"student": {"model": str(other)}, "baseline": "off"}))


def save_feature_classifier(folder: Path, config: dict[str, Any]) -> None:
    from distributed_kd.models.feature_classifier import FeatureClassifier
    from distributed_kd.models.feature_config import FeatureClassifierConfig

    torch.manual_seed(0)
    model = FeatureClassifier(
        FeatureClassifierConfig(**{key: value for key, value in config.items() if key != "model_type"})
    )
    with torch.no_grad():
        model.classifier.weight.mul_(3.0)
    model.save_pretrained(folder)
