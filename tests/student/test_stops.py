"""A rank that gets SIGTERM while no step is taken: as it starts, and as it writes the student."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import Ranks

pytestmark = pytest.mark.slow


def told_at(name: str) -> Any:
    """The worker function of a rank whose rank 0 is sent SIGTERM as it comes to a function of the worker's."""

    def work(notes: str) -> None:
        from distributed_kd.student import worker

        found = getattr(worker, name)

        def and_told(*given: Any, **named: Any) -> Any:
            if os.environ["RANK"] == "0":
                signal.raise_signal(signal.SIGTERM)
            return found(*given, **named)

        setattr(worker, name, and_told)
        worker.work(notes)

    return work


def at_start(notes: str) -> None:
    told_at("load_student")(notes)


def at_export(notes: str) -> None:
    told_at("write_export")(notes)


@pytest.mark.parametrize(
    ("work", "line", "is_done"),
    [
        (at_start, "stopped before the first step of this run; the same command goes on from there", False),
        (at_export, "stopped after the last step of the student, which is done; the same command goes on", True),
    ],
)
def test_a_stop_while_no_step_is_taken_ends_well(
    prepared_recipe: dict[str, Any], tmp_path: Path, work: Any, line: str, is_done: bool
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(prepared_recipe["workdir"], folder)
    ranks = Ranks(prepared_recipe | {"workdir": str(folder)}, tmp_path / "run", 2, work=work)
    ranks.wait()
    assert f"dkd: {line}" in ranks.said()
    assert (folder / "student" / "manifest.json").exists() == is_done
    assert not list((folder / "student").glob("checkpoints/step-*"))
