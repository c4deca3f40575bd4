"""What a workdir holds of each stage, read from the store alone: no cluster, model or corpus is asked."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import count
from typing import Any

import yaml

from distributed_kd.cache.inspect import facts_of
from distributed_kd.cache.manifest import CacheManifest
from distributed_kd.corpus.sequences import FOLDER as SEQUENCES_FOLDER
from distributed_kd.corpus.sequences import SequencesManifest
from distributed_kd.errors import RequestError
from distributed_kd.evaluate.artifact import FOLDER as REPORT_FOLDER
from distributed_kd.evaluate.artifact import REPORT, ReportManifest
from distributed_kd.recipe import Capture
from distributed_kd.recipe.whole import member_folder
from distributed_kd.store.filesystem import Store
from distributed_kd.store.manifest import Run
from distributed_kd.student import artifact
from distributed_kd.student.checkpoint_files import complete_steps

ABSENT, BEGUN, DONE = "absent", "begun", "done"


def status(workdir: str) -> dict[str, Any]:
    """Stage -> its `state` (absent, begun or done) and what is known of it. Raises `RequestError` where nothing is.

    A cache that is not in the usual folder is a stage `cache FOLDER`.
    """
    store = Store(workdir)
    stages = {
        "prepare": _sequences(store.child(SEQUENCES_FOLDER)),
        "cache": _cache(store, Capture().folder),
        **_other_caches(store),
        **{arm: _arm(store.child(arm)) for arm in artifact.ARMS},
        "evaluate": _report(store.child(REPORT_FOLDER)),
    }
    if all(facts["state"] == ABSENT for facts in stages.values()):
        raise RequestError(f"{store.uri} holds no stage of a distillation; name the `workdir` of a recipe")
    return {"workdir": store.uri, "stages": stages}


def _sequences(store: Store) -> dict[str, Any]:
    manifest = SequencesManifest.read(store)
    if manifest is None:
        return {"state": BEGUN if store.folders("") else ABSENT}
    splits = {name: split.positions for name, split in manifest.splits.items()}
    return {"state": DONE, "positions": splits, **_seconds(store)}


def _cache(workdir: Store, folder: str) -> dict[str, Any]:
    """Of an ensemble each member's too, as many as have begun; it is begun until their mean is."""
    members: dict[str, Any] = {}
    for place in count():
        member = _own_cache(workdir.child(member_folder(folder, place)))
        if member["state"] == ABSENT:
            break
        members[f"teacher {place}"] = member
    own = _own_cache(workdir.child(folder))
    if own["state"] == ABSENT and members:
        own = {"state": BEGUN}
    return {**own, **({"members": members} if members else {})}


def _other_caches(workdir: Store) -> dict[str, Any]:
    """Those directly in the workdir, and those that the recipes name which made its sequences and its student."""
    folders = set(workdir.folders(""))
    for name in (SEQUENCES_FOLDER, artifact.ARMS[0]):
        with suppress(FileNotFoundError):
            said = yaml.safe_load(workdir.read(f"{name}/{artifact.RECIPE}"))
            folders.add(said.get("capture", {}).get("folder", Capture().folder))
    folders -= {SEQUENCES_FOLDER, Capture().folder, *artifact.ARMS, REPORT_FOLDER}
    found = {}
    for folder in sorted(folders):
        with suppress(RequestError):  # a folder of something else, which has a manifest of its own
            found[f"cache {folder}"] = _cache(workdir, folder)
    return {name: facts for name, facts in found.items() if facts["state"] != ABSENT}


def _own_cache(store: Store) -> dict[str, Any]:
    manifest = CacheManifest.read(store)
    if manifest is None:
        return {"state": ABSENT}
    facts = facts_of(store, manifest)
    done = manifest.shards - len(facts["missing_shards"])
    known = {"shards": manifest.shards, "shards_done": done, "positions": facts["positions"]}
    size = {"bytes_total": facts["bytes_total"]}
    return {"state": BEGUN if manifest.index is None else DONE, **known, **size, **_seconds(store)}


def _arm(store: Store) -> dict[str, Any]:
    """Of a training in work the last complete checkpoint is known, where all ranks' disks or a bucket hold it."""
    manifest = artifact.StudentManifest.read(store)
    if manifest is not None:
        return {"state": DONE, "steps": manifest.steps, "parameters": manifest.parameters, **_seconds(store)}
    if not store.exists(artifact.RECIPE):
        return {"state": ABSENT}
    steps = complete_steps(store.child(artifact.CHECKPOINTS))
    return {"state": BEGUN, "last_checkpoint": steps[-1] if steps else None}


def _report(store: Store) -> dict[str, Any]:
    if ReportManifest.read(store) is None:
        return {"state": ABSENT}
    report = json.loads(store.read(REPORT))
    return {"state": DONE, "retention": report.get("retention")}


def _seconds(store: Store) -> dict[str, float]:
    run = Run.read(store)
    return {} if run is None else {"seconds": run.seconds}
