"""The student artifact: `WORKDIR/student` or `WORKDIR/baseline`.

`export/` opens with `AutoModelForCausalLM.from_pretrained` (of a LoRA student it is the adapter, which names its base,
unless the recipe merges it), `metrics.jsonl` has one line a step, `tensorboard/` the same as curves while it is made,
`trackers.json` which runs of other trackers have them, `checkpoints/` what a resumed run goes on from, and the
manifest, written last, what it was made from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from distributed_kd.errors import RequestError
from distributed_kd.models.locate import cache_folder, config_identity, identity, locate
from distributed_kd.recipe import Recipe, Student
from distributed_kd.store.filesystem import Store
from distributed_kd.store.manifest import Manifest
from distributed_kd.student.position_weights import PositionWeights

ARMS = ("student", "baseline")
EXPORT = "export"
CHECKPOINTS = "checkpoints"
CURVES = "tensorboard"
METRICS = "metrics.jsonl"
RECIPE = "recipe.yaml"  # from when its training begins

# These change how fast training runs, not what is learnt.
_NOT_IN_FINGERPRINT = {
    "launcher", "processes", "hostfile", "workers", "max_failures", "timeout_minutes",
    "micro_batch", "checkpoint_every", "keep_checkpoints", "follow", "disk_cache_gib", "spike_factor", "evaluate_every",
    "evaluate_sequences", "activation_checkpointing", "compile", "track",
}  # fmt: skip


# Keys of the student that are younger than students without them.
_YOUNGER = ("lora", "architecture", "classes", "config")


class StudentManifest(Manifest):
    format: Literal["dkd-student"] = "dkd-student"
    version: Literal[1] = 1
    arm: Literal["student", "baseline"]
    steps: int
    sequences_seen: int
    parameters: int
    trained_parameters: int
    tokenizer_sha256: str


def arm_recipe(recipe: Recipe, arm: str) -> Recipe:
    """The recipe of one arm: the baseline is the same student on hard labels alone, with what `baseline` says.

    What the teacher says of a position does not choose or weigh it there.
    """
    if arm == "student":
        return recipe
    assert recipe.baseline is not None
    said = recipe.baseline.model_dump(exclude_none=True)
    return recipe.model_copy(
        update={
            "objective": recipe.objective.model_copy(
                update={"alpha": 0.0, "cosine": 0.0, "confidence_exponent": 0.0, "entropy_share": 1.0}
            ),
            "trainer": recipe.trainer.model_copy(update=said),
        }
    )


def start_of(student: Student, found: StudentManifest | None = None) -> dict[str, str] | None:
    """What tells one `student.model` from another, whatever its folder is called; None where there is none.

    found: the finished student, whose own start is taken where that folder is gone. Raises `RequestError`.
    """
    if student.model is None:
        return None
    has_weights = student.init == "weights"
    try:
        folder = locate(student.model, weights=has_weights)
    except RequestError:
        if found is None:
            raise
        return found.made_from.get("start")
    return identity(folder) if has_weights else config_identity(folder)


def made_from_of(recipe: Recipe, cache_fingerprint: str, start: dict[str, str] | None) -> dict[str, Any]:
    """What a student of this (arm's) recipe is made from; start: `start_of` its model."""
    not_read = set() if recipe.trainer.schedule == "wsd" else {"decay_fraction"}
    alike = {"confidence_exponent", "entropy_share"} if PositionWeights.of(recipe.objective) is None else set()
    alike |= {"cosine"} if recipe.objective.cosine == 0.0 else set()
    younger = {key for key in _YOUNGER if getattr(recipe.student, key) is None}
    return {
        "cache": cache_fingerprint,
        "student": recipe.student.model_dump(mode="json", exclude=younger),
        **({} if start is None else {"start": start}),
        "objective": recipe.objective.model_dump(mode="json", exclude={"chunk"} | alike),
        "trainer": recipe.trainer.model_dump(mode="json", exclude=_NOT_IN_FINGERPRINT | not_read),
    }


def local_folder(store: Store, name: str, fingerprint: str) -> Path:
    """Beside the artifact where it is local; on this machine's disk where it lies in a bucket."""
    return Path(store.path(name)) if store.is_local else cache_folder() / name / fingerprint


def read_metrics(store: Store) -> list[dict[str, Any]]:
    """One mapping a step; empty when there are none."""
    if not store.exists(METRICS):
        return []
    return [json.loads(line) for line in store.read(METRICS).decode().splitlines()]


def put_metrics(store: Store, metrics: list[dict[str, Any]]) -> None:
    store.put(METRICS, "".join(json.dumps(line) + "\n" for line in metrics).encode())
