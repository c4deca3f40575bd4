"""The evaluate stage: scores on held-out documents, `report.json` and `report.html`."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from distributed_kd import cache as caches
from distributed_kd import console
from distributed_kd.cache.audit_file import read_audit
from distributed_kd.cache.inspect import inspect
from distributed_kd.cache.kept_mass import kept_mass_by_k
from distributed_kd.cache.manifest import store_of
from distributed_kd.corpus.batch import by_length
from distributed_kd.corpus.sequences import FOLDER as SEQUENCES_FOLDER
from distributed_kd.corpus.sequences import Sequence, Sequences
from distributed_kd.errors import DkdError, RequestError
from distributed_kd.evaluate import measures
from distributed_kd.evaluate.artifact import FOLDER, PAGE, REPORT, ReportManifest
from distributed_kd.evaluate.chosen import Chosen
from distributed_kd.evaluate.examples import Words, described
from distributed_kd.evaluate.page.render import render
from distributed_kd.evaluate.scores import ENSEMBLE, Scored, score
from distributed_kd.models import parts
from distributed_kd.models.load import choose_device, load_model, resolve_dtype
from distributed_kd.models.locate import locate
from distributed_kd.models.tokenizer import load_tokenizer, tokenizer_of
from distributed_kd.recipe import Recipe, dump
from distributed_kd.store.digest import fingerprint
from distributed_kd.store.filesystem import Store
from distributed_kd.store.folder import as_local_folder
from distributed_kd.store.manifest import Run, peak_memory_bytes
from distributed_kd.student.artifact import ARMS, EXPORT, StudentManifest, read_metrics

TEACHER = "teacher"  # of several, their mean in each figure


def evaluate(recipe: Recipe) -> dict[str, Any]:
    """Writes `WORKDIR/report`, or finds it done; returns what `report.json` holds."""
    begun = time.monotonic()
    workdir = Store(recipe.workdir)
    store = workdir.child(FOLDER)
    sequences = Sequences.of(recipe)
    cache = {"cache": inspect(store_of(recipe).uri)} if recipe.teachers else {}
    arms = _finished_arms(workdir, recipe)
    made_from = {
        "sequences": sequences.manifest.fingerprint,
        **{name: facts["fingerprint"] for name, facts in cache.items()},
        "evaluate": recipe.evaluate.model_dump(mode="json"),
        **{arm: manifest.fingerprint for arm, manifest in arms.items()},
    }
    found = ReportManifest.read(store)
    # A report is only read, never built upon: another recipe's is written anew, not refused.
    if found is not None and found.fingerprint == fingerprint(made_from):
        console.say(f"evaluate: done already ({store.uri}), skipped")
        return _with_later_audit(recipe, store, list(arms))
    store.check_writable()

    with console.waiting("evaluate: reading what is held out"):
        held_out = [row for entry in sequences.shards(recipe.evaluate.split) for row in sequences.read(entry.shard)]
    if not held_out:
        split = recipe.evaluate.split
        raise RequestError(f"{sequences.store.uri} holds no {split} sequence; set corpus.{split}_fraction")
    held_out = [held_out[place] for place in by_length(held_out)]  # so that batches are padded little
    report = _score(recipe, workdir, held_out, list(arms))
    report |= {
        **cache,
        **_more_of_cache(recipe, cache.get("cache", {})),
        "stages": _stages(recipe, list(arms)),
        "recipe": recipe.model_dump(mode="json"),
        "fingerprints": {key: value for key, value in made_from.items() if key != "evaluate"},
    }
    seconds = time.monotonic() - begun
    report["stages"]["evaluate"] = Run(seconds, peak_memory_bytes(), seconds).__dict__
    store.remove_leftovers("")
    _put(store, report, workdir, list(arms))
    store.put("recipe.yaml", dump(recipe).encode())
    ReportManifest(made_from=made_from, fingerprint=fingerprint(made_from)).put(store)
    return report


def _put(store: Store, report: dict[str, Any], workdir: Store, arms: list[str]) -> None:
    with console.waiting("evaluate: writing the report"):
        metrics = {arm: read_metrics(workdir.child(arm)) for arm in arms}
        store.put(REPORT, json.dumps(report, indent=1).encode())
        store.put(PAGE, render(report, metrics).encode())


def _with_later_audit(recipe: Recipe, store: Store, arms: list[str]) -> dict[str, Any]:
    """The report as it is, and with an audit that is younger than it: for that nothing is scored again."""
    report: dict[str, Any] = json.loads(store.read(REPORT))
    audit = read_audit(store_of(recipe).uri, report["cache"]["fingerprint"]) if recipe.teachers else None
    if audit is not None and audit != report.get("audit"):
        report["audit"] = audit
        _put(store, report, Store(recipe.workdir), arms)
        console.say("evaluate: the cache's audit is in the report now")
    return report


def _more_of_cache(recipe: Recipe, facts: dict[str, Any]) -> dict[str, Any]:
    """What `dkd inspect` does not print: it takes shards to be read, or an audit. A report is made without them too."""
    if not recipe.teachers:
        return {}
    found: dict[str, Any] = {}
    try:
        with console.waiting("evaluate: the mass that fewer ids would have kept"):
            found["kept_mass_by_k"] = kept_mass_by_k(caches.open(store_of(recipe)))
        found["audit"] = read_audit(store_of(recipe).uri, facts["fingerprint"])
    except DkdError as error:
        console.say(f"evaluate: left out of the report: {error}")
    return {name: value for name, value in found.items() if value is not None}


def _finished_arms(workdir: Store, recipe: Recipe) -> dict[str, StudentManifest]:
    arms = {}
    for arm in ARMS if recipe.baseline is not None else ("student",):
        manifest = StudentManifest.read(workdir.child(arm))
        if manifest is None:
            raise RequestError(f"{workdir.uri}/{arm} holds no finished {arm}; run `dkd train` first")
        arms[arm] = manifest
    return arms


def _score(recipe: Recipe, workdir: Store, held_out: list[Sequence], arms: list[str]) -> dict[str, Any]:
    device = choose_device()
    many = len(recipe.teachers) > 1
    teachers = {f"{TEACHER}-{place:02d}" if many else TEACHER: spec for place, spec in enumerate(recipe.teachers)}
    with console.waiting("evaluate: loading the models"):
        models = {
            name: load_model(locate(spec.model, spec.revision), resolve_dtype(spec.dtype, device), device)
            for name, spec in teachers.items()
        }
        for arm in arms:
            models[arm] = load_model(as_local_folder(workdir, f"{arm}/{EXPORT}"), torch.float32, device)
        for model in models.values():
            parts.check(model)
    documents = np.concatenate([sequence.position_documents for sequence in held_out])
    weights = {name: spec.weight for name, spec in teachers.items()}
    each = recipe.evaluate.examples
    chosen = Chosen("student", each, len(documents)) if teachers and each else None
    sizes = recipe.capture.batch_tokens, recipe.capture.head_chunk
    with console.progress("evaluate", len(documents)) as advance:
        pace = console.Pace("positions")
        scored = score(models, weights, held_out, *sizes, lambda done: advance(done, pace(done)), chosen)
    with console.waiting("evaluate: intervals over documents"):
        return _reported(recipe, scored, chosen, held_out, documents, teachers, arms)


def _reported(
    recipe: Recipe,
    scored: Scored,
    chosen: Chosen | None,
    held_out: list[Sequence],
    documents: np.ndarray,
    teachers: Collection[str],
    arms: list[str],
) -> dict[str, Any]:
    """What `report.json` says of the scores; `documents` [positions] is the document of each."""
    many = len(teachers) > 1
    scores = scored.models
    own = {name: measures.figures(value) for name, value in scores.items()}
    members = [own.pop(name) for name in teachers] if many else []
    if members:
        own = {TEACHER: {key: float(np.mean([one[key] for one in members])) for key in members[0]}} | own
    bootstrap = recipe.evaluate.bootstrap
    taught_by = scores.get(ENSEMBLE, scores.get(TEACHER))
    kept = measures.retention(scores["student"], taught_by, documents, bootstrap) if taught_by else None
    retention, interval = kept or (None, None)
    report: dict[str, Any] = {
        "models": own,
        "retention": retention,
        "retention_interval": interval,
        "held_out": {
            "split": recipe.evaluate.split,
            "documents": len(np.unique(documents)),
            "sequences": len(held_out),
            "positions": len(documents),
        },
    }
    if "baseline" in scores:
        report["differences"] = measures.differences([scores["student"]], [scores["baseline"]], documents, bootstrap)
        report["documents_won"] = measures.documents_won(scores["student"], scores["baseline"], documents)
    if members:
        report["members"] = members
        if "baseline" in scores:
            found = measures.transferred_share(
                scores["student"], scores["baseline"], scores[ENSEMBLE], documents, bootstrap
            )
            report["transferred_share"], report["transferred_share_interval"] = found or (None, None)
    report["calibration"] = {name: measures.calibration(scores[name]) for name in scores if name in own}
    if scored.teacher_entropy is not None:
        of_arms = {arm: scores[arm] for arm in arms}
        report["by_teacher_entropy"] = measures.by_teacher_entropy(of_arms, scored.teacher_entropy)
    if chosen is not None:
        report["examples"] = described(chosen.positions(), held_out, _words(recipe))
    return report


def _words(recipe: Recipe) -> Words:
    tokenizer = None if recipe.corpus.takes_features else load_tokenizer(locate(*tokenizer_of(recipe), weights=False))
    return Words(recipe.corpus.task, tokenizer)


def _stages(recipe: Recipe, arms: list[str]) -> dict[str, Any]:
    """Seconds and peak memory by stage; training is the sum of its arms, the cache that of several teachers' too."""
    workdir = Store(recipe.workdir)
    caches = [store_of(recipe)] if recipe.teachers else []
    if len(recipe.teachers) > 1:
        caches += [store_of(recipe.of_teacher(place)) for place in range(len(recipe.teachers))]
    stages: dict[str, Any] = {}
    for name, stores in (("prepare", [workdir.child(SEQUENCES_FOLDER)]), ("cache", caches)):
        runs = [run for run in map(Run.read, stores) if run is not None]
        if runs:
            stages[name] = _sum(runs).__dict__
    training = [run for run in (Run.read(workdir.child(arm)) for arm in arms) if run is not None]
    stages["train"] = _sum(training).__dict__
    return stages


def _sum(runs: list[Run]) -> Run:
    peak = max((run.peak_memory_bytes for run in runs), default=0)
    return Run(sum(run.seconds for run in runs), peak, sum(run.device_seconds for run in runs))
