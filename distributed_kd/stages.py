"""The four stages in turn, each from the artifact of the one before it. What `dkd run` and the Ray jobs call.

A finished stage is found by the fingerprint of its artifact and not done again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed_kd.recipe import Recipe

STAGES = ("prepare", "cache", "train", "evaluate")


def run_stage(stage: str, recipe: Recipe) -> Any:
    """Runs one stage; what it returns is for the command line to show."""
    return _FUNCTIONS[stage](recipe)


def run_all(recipe: Recipe) -> dict[str, Any]:
    """All stages; returns the report. One Ray session serves the stages that use it, and ends before training."""
    from distributed_kd.launch.ray_session import ray_session

    with ray_session(recipe.capture.address):
        run_stage("prepare", recipe)
        run_stage("cache", recipe)
    run_stage("train", recipe)
    return run_stage("evaluate", recipe)


def _prepare(recipe: Recipe) -> Any:
    from distributed_kd.corpus.prepare import prepare

    return prepare(recipe)


def _cache(recipe: Recipe) -> Any:
    from distributed_kd.student.build import write_initial_weights
    from distributed_kd.teacher.capture import capture

    manifest = capture(recipe)
    write_initial_weights(recipe)  # while the teacher is at hand: training must not need it
    return manifest


def _train(recipe: Recipe) -> None:
    from distributed_kd.student.train import train

    train(recipe)


def _evaluate(recipe: Recipe) -> Any:
    from distributed_kd.evaluate.evaluate import evaluate

    return evaluate(recipe)


_FUNCTIONS: dict[str, Callable[[Recipe], Any]] = {
    "prepare": _prepare,
    "cache": _cache,
    "train": _train,
    "evaluate": _evaluate,
}
