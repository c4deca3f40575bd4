"""Weights & Biases and MLflow beside TensorBoard, where `trainer.track` names them.

Such a server may be away for hours, and its client then waits for minutes in every call: each has a thread of its own,
which tells what has come since it last could, and training learns of none of it but one line. Where a run is kept, and
by whom, says the environment, as for any program that uses these clients (WANDB_PROJECT, WANDB_API_KEY, WANDB_MODE,
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and so on): no key of theirs is in a recipe.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from distributed_kd.errors import RequestError
from distributed_kd.recipe import Recipe, dump
from distributed_kd.store.filesystem import Store
from distributed_kd.student.artifact import CURVES, local_folder
from distributed_kd.student.tracking import Curves, curves_of

RUNS = "trackers.json"  # beside the curves: which run of each tracker is this training's
_AGAIN_SECONDS = 60.0  # after a call that failed
_BEGIN_SECONDS = 15.0  # wandb's own 90 would hold up a process that ends meanwhile
_CLOSE_SECONDS = 10.0  # of the 30 in which a training that is asked to stop has ended
_MLFLOW_PARAMETERS = 100  # in a request
_MLFLOW_CHARACTERS = 500  # of a parameter's value
_MLFLOW_METRICS = 1000  # in a request


class Client(Protocol):
    """A tracker's own, called from one thread. Whatever it raises is taken for a server that is away."""

    def begin(self, run: str | None) -> str:
        """Goes on with the run of this id, or begins one where it is None; returns its id."""

    def tell(self, lines: list[dict[str, Any]]) -> None:
        """Steps' metrics. Steps that the run has already are passed over."""

    def end(self, failed: bool) -> None: ...


class Wandb:
    def __init__(self, name: str, recipe: Recipe, folder: Path) -> None:
        self._name = name
        self._recipe = recipe
        self._folder = folder
        self._run: Any = None

    def begin(self, run: str | None) -> str:
        import wandb

        self._run = wandb.init(
            id=run,
            resume="allow",
            name=os.environ.get("WANDB_NAME", self._name),
            config=self._recipe.model_dump(mode="json"),
            dir=os.environ.get("WANDB_DIR", self._folder),
            settings=wandb.Settings(
                silent=True,
                console="off",
                reinit="create_new",  # an arm's run is its own
                init_timeout=_BEGIN_SECONDS,
                finish_timeout=_CLOSE_SECONDS,  # a process waits for wandb's own at its end
                finish_timeout_raises=True,
            ),
        )
        return str(self._run.id)

    def tell(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["step"] >= self._run.starting_step:  # of a run that goes on, as its server knows it
                self._run.log(curves_of(line), step=line["step"])

    def end(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Mlflow:
    def __init__(self, name: str, recipe: Recipe) -> None:
        self._name = name
        self._recipe = recipe
        self._run = ""
        self._next = 0  # the first step that the run does not have

    def begin(self, run: str | None) -> str:
        import mlflow
        from mlflow.entities import Param

        client = mlflow.MlflowClient()
        if run is not None:
            mlflow.start_run(run_id=run)
            told = client.get_metric_history(run, "train/loss")
            self._next = max((metric.step for metric in told), default=-1) + 1
        else:
            begun = mlflow.start_run(run_name=os.environ.get("MLFLOW_RUN_NAME", self._name))
            run = str(begun.info.run_id)
            said = [
                Param(key, str(value)[:_MLFLOW_CHARACTERS])
                for key, value in _leaves(self._recipe.model_dump(mode="json"))
            ]
            for begin in range(0, len(said), _MLFLOW_PARAMETERS):
                client.log_batch(run, params=said[begin : begin + _MLFLOW_PARAMETERS])
        self._run = run
        return run

    def tell(self, lines: list[dict[str, Any]]) -> None:
        import mlflow
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now, line["step"])
            for line in lines
            for name, value in curves_of(line).items()
            if line["step"] >= self._next
        ]
        client = mlflow.MlflowClient()
        for begin in range(0, len(metrics), _MLFLOW_METRICS):
            client.log_batch(self._run, metrics=metrics[begin : begin + _MLFLOW_METRICS])

    def end(self, failed: bool) -> None:
        import mlflow

        mlflow.end_run("FAILED" if failed else "FINISHED")


class Tracker:
    """A client and its thread."""

    def __init__(self, name: str, client: Client, run: str | None, begun: Callable[[str], None]) -> None:
        """begun: is told the run's id once there is one."""
        self._name = name
        self._client = client
        self._run = run
        self._begun = begun
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()  # None ends them
        self._is_ending = threading.Event()
        self._failed = False
        self._has_warned = False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def add(self, line: dict[str, Any]) -> None:
        """A step's metrics; returns at once."""
        self._lines.put(line)

    def close(self, failed: bool) -> None:
        """Ends the run, if its server answers in 10 seconds."""
        self._failed = failed
        self._is_ending.set()
        self._lines.put(None)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn("it does not answer")

    def _work(self) -> None:
        waiting: list[dict[str, Any]] = []
        is_last = False
        is_begun = False
        while not is_last:
            is_last = self._take(waiting)
            try:
                if not is_begun:
                    run = self._client.begin(self._run)
                    is_begun = True
                    self._begun(run)
                self._client.tell(waiting)
                waiting.clear()
                if is_last:
                    self._client.end(self._failed)
            except Exception as error:  # any that a tracker has is no reason to end a training
                self._warn(f"{type(error).__name__}: {error}")
                self._is_ending.wait(_AGAIN_SECONDS)

    def _take(self, waiting: list[dict[str, Any]]) -> bool:
        """Adds what has come, for which it waits if nothing else does; says whether that was the last."""
        is_first = not waiting
        while is_first or not self._lines.empty():
            is_first = False
            line = self._lines.get()
            if line is None:
                return True
            waiting.append(line)
        return False

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            print(
                f"dkd: {self._name} cannot be told of this training ({' '.join(reason.split())[:200]}): it goes on "
                "without, and what is missing there is told when it can be",
                file=sys.stderr,
                flush=True,
            )


def refuse_missing(names: Sequence[str]) -> None:
    """Raises `RequestError` for a tracker whose package is not installed."""
    for name in names:
        if not is_installed(name):
            raise RequestError(
                f"trainer.track {name}: the package {name} is not installed: pip install 'distributed-kd[{name}]'"
            )


def is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a folder called wandb is what wandb itself leaves


def start_trackers(recipe: Recipe, arm: str, store: Store, fingerprint: str, folder: Path) -> list[Tracker]:
    """Those that the recipe names, each going on with its run of this training where it has one.

    store: the arm's artifact. folder: where wandb keeps what it sends.
    """
    runs: dict[str, str] = {}
    if store.exists(RUNS):
        found = json.loads(store.read(RUNS))
        runs = found["runs"] if found["fingerprint"] == fingerprint else {}
    name = f"{recipe.name} {arm}"
    lock = threading.Lock()

    def remember(tracker: str, run: str) -> None:
        with lock:
            runs[tracker] = run
            store.put(RUNS, json.dumps({"fingerprint": fingerprint, "runs": runs}).encode())

    clients: dict[str, Client] = {"wandb": Wandb(name, recipe, folder), "mlflow": Mlflow(name, recipe)}
    return [
        Tracker(tracker, clients[tracker], runs.get(tracker), partial(remember, tracker))
        for tracker in recipe.trainer.track
    ]


class Tracking:
    """TensorBoard and the trackers that a recipe names. Rank 0 has one, open while it trains."""

    def __init__(self, recipe: Recipe, arm: str, store: Store, fingerprint: str, resumed: int) -> None:
        """store: the arm's artifact. resumed: the first step that is taken."""
        folder = local_folder(store, CURVES, fingerprint)
        self._curves = Curves(folder, dump(recipe), resumed)
        self._trackers = start_trackers(recipe, arm, store, fingerprint, folder.parent)

    def add(self, line: dict[str, Any]) -> None:
        """A step's metrics."""
        self._curves.add(line)
        for tracker in self._trackers:
            tracker.add(line)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._curves.close()
        for tracker in self._trackers:
            tracker.close(failed=kind is not None)


def _leaves(data: dict[str, Any], key: str = "") -> Iterator[tuple[str, Any]]:
    """Nested keys as `section.key`, with their values."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{key}{name}.")
        else:
            yield f"{key}{name}", value
