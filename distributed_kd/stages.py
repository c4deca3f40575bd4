"""The four stages in turn, each from the artifact of the one before it. What the commands and the Ray jobs call.

A finished stage is found by the fingerprint of its artifact and not done again. Each imports what it needs when it
runs, so that naming the stages costs nothing.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from distributed_kd.cache.manifest import CacheManifest
    from distributed_kd.corpus.sequences import SequencesManifest
    from distributed_kd.recipe import Recipe


def prepare(recipe: Recipe) -> SequencesManifest:
    """Teachers that a recipe makes are trained first: what they take decides what sequences are."""
    from distributed_kd import console
    from distributed_kd.corpus import prepare as stage
    from distributed_kd.launch.ray_session import ray_session
    from distributed_kd.recipe import makers

    found = makers(recipe)
    with ray_session(recipe.capture.address) if found else nullcontext():  # one for all of them
        for place, maker in enumerate(found, start=1):
            console.say(f"prepare: teacher {place} of {len(found)} first ({maker.workdir})")
            prepare(maker)
            if maker.teachers:
                cache(maker)
            train(maker)
        return stage.prepare(recipe)


def cache(recipe: Recipe) -> CacheManifest:
    """Of several teachers, one cache each and their mean. Raises `RequestError` where there is none, `Stopped` at
    SIGTERM."""
    from distributed_kd.launch.stop import stopped_by_sigterm

    with stopped_by_sigterm():
        return _cache(recipe)


def _cache(recipe: Recipe) -> CacheManifest:
    from distributed_kd import console
    from distributed_kd.errors import RequestError
    from distributed_kd.teacher.capture import capture

    if not recipe.teachers:
        raise RequestError("the recipe names no teachers, so there is nothing to capture; go on with `dkd train`")
    if len(recipe.teachers) > 1:
        manifest = _cache_of_all(recipe)
    else:
        manifest = capture(recipe, _first_uses(recipe) if recipe.trainer.follow else None)
    if recipe.student.init == "teacher_layers":
        with console.waiting("cache: writing the student's first weights"):
            from distributed_kd.student.build import write_initial_weights

            write_initial_weights(recipe)  # while the teacher is at hand: training must not need it
    return manifest


def _cache_of_all(recipe: Recipe) -> CacheManifest:
    from distributed_kd.cache.manifest import store_of
    from distributed_kd.cache.merge import merge
    from distributed_kd.launch.ray_session import ray_session
    from distributed_kd.teacher.capture import capture

    members = [recipe.of_teacher(place) for place in range(len(recipe.teachers))]
    with ray_session(recipe.capture.address):  # one for all of them
        for member in members:
            capture(member)
    weights = [teacher.weight for teacher in recipe.teachers]
    return merge([store_of(own).uri for own in members], store_of(recipe).uri, weights, recipe.targets.mean)


def _first_uses(recipe: Recipe) -> Callable[[str, np.ndarray], np.ndarray]:
    """The order in which training needs the shards of a cache, of its fingerprint and its shards' rows."""
    from distributed_kd.student.order import GlobalOrder

    trainer = recipe.trainer
    return lambda cache, rows: GlobalOrder(cache, trainer.seed, rows, trainer.global_batch).first_uses()


def train(recipe: Recipe) -> None:
    from distributed_kd.student import train as stage

    stage.train(recipe)


def evaluate(recipe: Recipe) -> dict[str, Any]:
    """Returns what `report.json` holds."""
    from distributed_kd.evaluate import evaluate as stage

    return stage.evaluate(recipe)


def run(recipe: Recipe) -> dict[str, Any]:
    """All four; returns the report. Raises `RequestError` in a rank, of which each would do all of it."""
    from distributed_kd.errors import RequestError
    from distributed_kd.launch.rank import take_place

    if take_place() is not None:
        raise RequestError("`dkd run` starts its ranks itself; with another launcher, start `dkd train` for that stage")
    prepare(recipe)
    if recipe.teachers:
        cache(recipe)
    train(recipe)
    return evaluate(recipe)
