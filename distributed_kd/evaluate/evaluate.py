"""The evaluate stage: scores on held-out documents, `report.json` and `report.html`."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

import numpy as np
import torch

from distributed_kd import console
from distributed_kd.cache.inspect import inspect
from distributed_kd.cache.manifest import FOLDER as CACHE_FOLDER
from distributed_kd.corpus.sequences import FOLDER as SEQUENCES_FOLDER
from distributed_kd.corpus.sequences import Sequence, Sequences
from distributed_kd.errors import RequestError
from distributed_kd.evaluate import measures
from distributed_kd.evaluate.page import render
from distributed_kd.evaluate.scores import TEACHER, score
from distributed_kd.models import parts
from distributed_kd.models.load import choose_device, load_model, resolve_dtype
from distributed_kd.models.locate import locate
from distributed_kd.recipe import Recipe, dump
from distributed_kd.store.digest import fingerprint
from distributed_kd.store.filesystem import Store
from distributed_kd.store.folder import as_local_folder
from distributed_kd.store.manifest import Manifest, Run, peak_memory_bytes
from distributed_kd.student.artifact import ARMS, EXPORT, StudentManifest, read_metrics

FOLDER = "report"
REPORT = "report.json"
PAGE = "report.html"


class ReportManifest(Manifest):
    format: Literal["dkd-report"] = "dkd-report"
    version: Literal[1] = 1


def evaluate(recipe: Recipe) -> dict[str, Any]:
    """Writes `WORKDIR/report`, or finds it done; returns what `report.json` holds."""
    begun = time.monotonic()
    workdir = Store(recipe.workdir)
    store = workdir.child(FOLDER)
    sequences = Sequences.of(recipe)
    cache_facts = inspect(workdir.child(CACHE_FOLDER).uri)
    arms = _finished_arms(workdir, recipe)
    made_from = {
        "sequences": sequences.manifest.fingerprint,
        "cache": cache_facts["fingerprint"],
        "evaluate": recipe.evaluate.model_dump(mode="json"),
        **{arm: manifest.fingerprint for arm, manifest in arms.items()},
    }
    found = ReportManifest.read(store)
    # A report is only read, never built upon: another recipe's is written anew, not refused.
    if found is not None and found.fingerprint == fingerprint(made_from):
        console.say(f"evaluate: done already ({store.uri}), skipped")
        return json.loads(store.read(REPORT))
    store.check_writable()

    held_out = [row for entry in sequences.shards(recipe.evaluate.split) for row in sequences.read(entry.shard)]
    if not held_out:
        split = recipe.evaluate.split
        raise RequestError(f"{sequences.store.uri} holds no {split} sequence; set corpus.{split}_fraction")
    report, scores = _score(recipe, workdir, held_out, list(arms))
    report |= {
        "cache": cache_facts,
        "stages": _stages(workdir, list(arms)),
        "recipe": recipe.model_dump(mode="json"),
        "fingerprints": {key: value for key, value in made_from.items() if key != "evaluate"},
    }
    report["stages"]["evaluate"] = Run(time.monotonic() - begun, peak_memory_bytes()).__dict__
    metrics = {arm: read_metrics(workdir.child(arm)) for arm in arms}
    curves = {name: measures.calibration(own) for name, own in scores.items()}
    store.remove_leftovers("")
    store.put(REPORT, json.dumps(report, indent=1).encode())
    store.put(PAGE, render(report, metrics, curves).encode())
    store.put("recipe.yaml", dump(recipe).encode())
    ReportManifest(made_from=made_from, fingerprint=fingerprint(made_from)).put(store)
    return report


def _finished_arms(workdir: Store, recipe: Recipe) -> dict[str, StudentManifest]:
    arms = {}
    for arm in ARMS if recipe.baseline is not None else ("student",):
        manifest = StudentManifest.read(workdir.child(arm))
        if manifest is None:
            raise RequestError(f"{workdir.uri}/{arm} holds no finished {arm}; run `dkd train` first")
        arms[arm] = manifest
    return arms


def _score(
    recipe: Recipe, workdir: Store, held_out: list[Sequence], arms: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    device = choose_device()
    teacher = recipe.teachers[0]
    dtype = resolve_dtype(teacher.dtype, device)
    models = {TEACHER: load_model(locate(teacher.model, teacher.revision), dtype, device)}
    for arm in arms:
        models[arm] = load_model(as_local_folder(workdir, f"{arm}/{EXPORT}"), torch.float32, device)
    for model in models.values():
        parts.check(model)
    documents = np.concatenate([sequence.position_documents for sequence in held_out])
    with console.progress("evaluate", len(documents)) as advance:
        scores = score(models, held_out, recipe.capture.batch_tokens, recipe.capture.head_chunk, advance)
    own = {name: measures.figures(value) for name, value in scores.items()}
    teachers = own[TEACHER]["accuracy"]
    report: dict[str, Any] = {
        "models": own,
        "retention": own["student"]["accuracy"] / teachers if teachers else None,
        "held_out": {
            "split": recipe.evaluate.split,
            "documents": len(np.unique(documents)),
            "sequences": len(held_out),
            "positions": len(documents),
        },
    }
    if "baseline" in scores:
        report["differences"] = measures.differences(
            scores["student"], scores["baseline"], documents, recipe.evaluate.bootstrap
        )
        report["documents_won"] = measures.documents_won(scores["student"], scores["baseline"], documents)
    return report, scores


def _stages(workdir: Store, arms: list[str]) -> dict[str, Any]:
    """Seconds and peak memory by stage; training is the sum of its arms."""
    runs = {name: Run.read(workdir.child(name)) for name in (SEQUENCES_FOLDER, CACHE_FOLDER, *arms)}
    known = {name: run for name, run in runs.items() if run is not None}
    training = [known[arm] for arm in arms if arm in known]
    named = {"prepare": known.get(SEQUENCES_FOLDER), "cache": known.get(CACHE_FOLDER)}
    stages: dict[str, Any] = {name: run.__dict__ for name, run in named.items() if run is not None}
    stages["train"] = Run(
        sum(run.seconds for run in training), max((run.peak_memory_bytes for run in training), default=0)
    ).__dict__
    return stages
