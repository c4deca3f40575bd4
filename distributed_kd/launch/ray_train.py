"""Ranks as the workers of Ray Train's TorchTrainer: a lost one restarts from the last complete checkpoint by itself.

Ray places the workers, joins them and starts all of them anew when one is lost. The rest is the worker function that
every launcher starts: it reads the cache, writes checkpoints and tells its progress past Ray. An error of ours ends
the ranks as it does elsewhere and would be tried again, so those that start after it read it and do nothing. SIGTERM
and SIGUSR1 are for the driver, which notes them for the ranks; a worker that gets one is lost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from distributed_kd import console
from distributed_kd.errors import Stopped, WorkError
from distributed_kd.launch.processors import set_processors
from distributed_kd.launch.ranks import Notes, error_of, shown
from distributed_kd.launch.ray_session import ray_session
from distributed_kd.launch.stop import after_the_last_step, on_stop
from distributed_kd.launch.watch import Verdict
from distributed_kd.recipe import Recipe

_POLL_SECONDS = 1.0


def launch(work: Callable[[str], None], recipe: Recipe, arm: str, workers: int, notes: Notes) -> None:
    """Calls `work(NOTES)` in so many workers, until all end.

    Raises what a rank refused, or `WorkError` when more were lost than `trainer.max_failures`.
    """
    notes.begin(recipe, arm)
    with ray_session(recipe.capture.address), tempfile.TemporaryDirectory(prefix="dkd-ray-train-") as folder:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        resources = ray.cluster_resources()
        kind = "GPU" if "GPU" in resources else "CPU"
        if resources.get(kind, 0.0) < workers:
            console.say(f"train: the cluster has {resources.get(kind, 0.0):g} {kind}s for {workers} workers, and waits")
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"work": work, "notes": notes.store.uri},
            torch_config=TorchConfig(timeout_s=round(60 * recipe.trainer.timeout_minutes)),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=kind == "GPU"),
            run_config=RunConfig(
                name=arm, storage_path=folder, failure_config=FailureConfig(max_failures=recipe.trainer.max_failures)
            ),
        )
        console.say(f"train: starting {workers} Ray workers for the {arm}")
        failed = None
        try:
            with shown(arm, notes.progress, _POLL_SECONDS), on_stop(lambda _: notes.ask_to_stop()):
                trainer.fit()
        except TrainingFailedError as error:
            failed = error
    verdict = notes.error()
    if verdict is not None and (failed is not None or verdict.kind == "refused"):
        raise error_of(verdict) from failed
    if failed is not None:
        raise WorkError(f"training failed: {_reason(failed)}; the same command goes on from the last checkpoint")
    if notes.is_asked_to_stop():
        raise after_the_last_step(arm)


def _reason(failed: Exception) -> str:
    """The last line of what the first rank that failed says: Ray gives it as a traceback."""
    failures: dict[int, Exception] = getattr(failed, "worker_failures", {})
    if not failures:
        return " ".join(str(failed).split())[:300]
    rank = min(failures)
    return f"rank {rank}: {str(failures[rank]).strip().splitlines()[-1]}"


def _rank(said: dict[str, Any]) -> None:
    import os

    notes = Notes(said["notes"])
    verdict = notes.error()
    if verdict is not None and verdict.kind == "refused":
        return
    if os.environ["RANK"] == "0":
        notes.take_back()
    set_processors(os.environ, int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        said["work"](said["notes"])
    except Stopped as stopped:  # on all ranks, which end as though they were done
        if os.environ["RANK"] == "0":
            notes.tell_error(0, Verdict("refused", str(stopped), stopped.exit_code))
