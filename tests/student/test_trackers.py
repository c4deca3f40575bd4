"""W&B and MLflow get what TensorBoard gets, in one run however often a training is resumed, and can stop none."""

from __future__ import annotations

import json
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_kd.errors import RequestError
from distributed_kd.recipe import parse
from distributed_kd.store.filesystem import Store
from distributed_kd.student import trackers
from distributed_kd.student.artifact import made_from_of
from tests.commands import dkd, write_recipe
from tests.test_recipe import MINIMAL, changed

LINES = [{"step": step, "loss": 1.0 / (step + 1), "seconds": 0.5} for step in range(6)]


class Server:
    """A tracker that is away for its first so many calls."""

    def __init__(self, fails: int = 0) -> None:
        self.fails = fails
        self.calls: list[Any] = []

    def _answer(self, call: Any) -> None:
        if self.fails:
            self.fails -= 1
            raise ConnectionError("nobody\nthere")
        self.calls.append(call)

    def begin(self, run: str | None) -> str:
        self._answer(("begin", run))
        return run or "new"

    def tell(self, lines: list[dict[str, Any]]) -> None:
        self._answer([line["step"] for line in lines])

    def end(self, failed: bool) -> None:
        self._answer(("end", failed))

    @property
    def told(self) -> list[int]:
        return [step for call in self.calls if isinstance(call, list) for step in call]


@pytest.mark.parametrize("fails", [0, 1, 3])
def test_what_a_server_that_was_away_has_missed_is_told_later(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails: int
) -> None:
    monkeypatch.setattr(trackers, "_AGAIN_SECONDS", 0.01)
    server, runs = Server(fails), []
    tracker = trackers.Tracker("somewhere", server, "run-1", runs.append)
    tracker.add(LINES[0])
    deadline = time.monotonic() + 30
    while not server.told:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for line in LINES[1:]:
        tracker.add(line)
    tracker.close(failed=True)
    assert server.calls[0] == ("begin", "run-1") and runs == ["run-1"]
    assert server.told == [0, 1, 2, 3, 4, 5]
    assert server.calls[-1] == ("end", True)
    warned = capfd.readouterr().err
    assert warned.count("somewhere cannot be told of this training (ConnectionError: nobody there)") == min(fails, 1)
    assert warned.count("\n") == min(fails, 1)


def test_a_server_that_hangs_holds_up_neither_steps_nor_the_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", 0.2)
    server, never = Server(), threading.Event()
    server.tell = lambda lines: never.wait(60)  # type: ignore[method-assign,assignment,return-value]
    tracker = trackers.Tracker("somewhere", server, None, lambda run: None)
    begun = time.monotonic()
    for line in LINES * 100:
        tracker.add(line)
    tracker.close(failed=False)
    never.set()
    assert time.monotonic() - begun < 5
    assert capfd.readouterr().err.count("somewhere cannot be told of this training (it does not answer)") == 1


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trackers.refuse_missing(["wandb", "mlflow"])
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RequestError, match=r"trainer\.track mlflow: .*pip install 'distributed-kd\[mlflow\]'"):
        trackers.refuse_missing(["wandb", "mlflow"])
    (tmp_path / "nobodys").mkdir()  # as wandb leaves a folder of its own name
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RequestError, match="the package nobodys is not installed"):
        trackers.refuse_missing(["nobodys"])


def test_what_is_tracked_is_not_part_of_what_a_student_is_made_from() -> None:
    tracked = parse(changed("trainer.track", ["mlflow", "wandb"]))
    assert made_from_of(tracked, "cache", None) == made_from_of(parse(MINIMAL), "cache", None)
    with pytest.raises(RequestError, match=r"trainer\.track\.0: input should be 'wandb' or 'mlflow'"):
        parse(changed("trainer.track", ["comet"]))


def two_runs(tmp_path: Path, name: str, overlap: int) -> dict[str, Any]:
    """Trains "steps" 0 to 3, and 4 - overlap to 5 when it goes on; another training afterwards. What was remembered."""
    recipe = parse(changed("trainer.track", [name]))
    store = Store(str(tmp_path / "student"))
    for training, lines in (("key", LINES[:4]), ("key", LINES[4 - overlap :])):
        (tracker,) = trackers.start_trackers(recipe, "student", store, training, tmp_path)
        for line in lines:
            tracker.add(line)
        tracker.close(failed=training == "key" and lines is LINES[:4])
        remembered = json.loads(store.read(trackers.RUNS))
    (tracker,) = trackers.start_trackers(recipe, "student", store, "another key", tmp_path)
    tracker.close(failed=False)
    other = json.loads(store.read(trackers.RUNS))
    assert other["runs"][name] != remembered["runs"][name]
    return remembered["runs"]


@pytest.mark.slow
def test_mlflow_has_one_run_with_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlflow'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    runs = two_runs(tmp_path, "mlflow", overlap=2)
    client = mlflow.MlflowClient()
    found = client.get_run(runs["mlflow"])
    assert found.info.run_name == "x student" and found.info.status == "FINISHED"
    assert found.data.metrics.keys() == {"train/loss", "train/seconds"}
    assert found.data.params["objective.alpha"] == "0.5"
    history = client.get_metric_history(runs["mlflow"], "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(line["step"], line["loss"]) for line in LINES]


@pytest.fixture
def own_wandb() -> Iterator[None]:
    """It reads its environment once a process."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.slow
def test_wandb_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_wandb: None) -> None:
    """Offline, where each start writes a file of its own; `wandb sync` puts those of one id together."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    runs = two_runs(tmp_path, "wandb", overlap=0)
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    own = [file for file in files if file.name == f"run-{runs['wandb']}.wandb"]
    assert len(own) == 2 and len(files) == 3
    found = [row for file in own for row in history_of(file)]
    assert [(row["_step"], row["train/loss"], row["train/seconds"]) for row in found] == [
        (line["step"], line["loss"], line["seconds"]) for line in LINES
    ]


@pytest.mark.slow
def test_a_wandb_that_is_away_holds_up_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], own_wandb: None
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(trackers, "_BEGIN_SECONDS", 2.0)
    recipe = parse(changed("trainer.track", ["wandb"]))
    (tracker,) = trackers.start_trackers(recipe, "student", Store(str(tmp_path / "student")), "key", tmp_path)
    tracker.add(LINES[0])
    begun = time.monotonic()
    tracker.close(failed=False)
    assert time.monotonic() - begun < 10
    assert capfd.readouterr().err.count("dkd: wandb cannot be told of this training (CommError: ") == 1


def history_of(file: Path) -> list[dict[str, float]]:
    """What an offline run's file says was logged."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in records_of(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items()})
    return rows


def records_of(data: bytes) -> Iterator[bytes]:
    """LevelDB's log: blocks of 32 KiB, in them pieces of (checksum, length, kind), after 7 bytes of the file's own."""
    place, record = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield record
            record = b""


@pytest.mark.slow
def test_a_training_ends_well_without_a_tracker_that_was_asked_for(
    captured_recipe: dict[str, Any], tmp_path: Path
) -> None:
    captured_recipe["trainer"]["track"] = ["wandb", "mlflow"]
    recipe = write_recipe(tmp_path, captured_recipe)
    away = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = dkd("train", recipe, **away)
    assert done.returncode == 0, done.stderr
    student = Path(captured_recipe["workdir"]) / "student"
    log = (student / "train.log").read_text()
    assert log.count("dkd: mlflow cannot be told of this training") == 1 and "dkd: wandb" not in log
    (file,) = (student / "wandb").glob("offline-run-*/*.wandb")
    told = history_of(file)
    metrics = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert [row["_step"] for row in told] == [line["step"] for line in metrics] == list(range(6))
    for row, line in zip(told, metrics, strict=True):
        assert {f"train/{key}": value for key, value in line.items() if key != "step"}.items() <= row.items()
