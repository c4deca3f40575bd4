"""A launcher's process on this host: its output in a log, its progress shown, its failure told in one line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from pathlib import Path

from distributed_kd.errors import DkdError, WorkError
from distributed_kd.launch.ranks import Notes, error_of, shown
from distributed_kd.launch.stop import after_the_last_step, before_the_first_step, on_stop

_STOP_SECONDS = 30.0  # in which ranks end their step and save; torchrun kills them then
_POLL_SECONDS = 0.2


def run_launcher(command: list[str], environment: dict[str, str], notes: Notes, arm: str, log: Path) -> None:
    """Runs it until all its ranks have ended. Ctrl-C stops the ranks first; so do SIGTERM and SIGUSR1, handed on.

    Raises what a rank refused, or `WorkError` with the line of the log that tells most.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    seconds = _POLL_SECONDS if notes.store.is_local else 5 * _POLL_SECONDS
    is_asked_to_stop = threading.Event()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )

        def stop(number: int) -> None:
            is_asked_to_stop.set()
            process.send_signal(signal.SIGTERM)

        try:
            with shown(arm, notes.progress, seconds), on_stop(stop):
                code = process.wait()
        except BaseException:
            _stop(process)
            raise
    verdict = notes.error()
    if verdict is not None and verdict.kind != "failed":
        raise error_of(verdict)
    if is_asked_to_stop.is_set() and not code:
        raise after_the_last_step(arm)
    if is_asked_to_stop.is_set() and notes.progress() is None:  # the ranks had not come together yet
        raise before_the_first_step()
    if code:
        raise _failure(verdict.message if verdict else None, log, code)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _failure(told: str | None, log: Path, code: int) -> DkdError:
    """A rank that cannot reach the notes has said its line in the log, behind its host's name perhaps."""
    text = log.read_text(errors="replace")
    said = re.findall(r"(?:^|: )dkd: (.*)", text, re.MULTILINE)
    lines = [line.strip() for line in text.splitlines() if "Error" in line and "torch/" not in line]
    last = told or next(iter(said + lines), f"exit status {code}")
    return WorkError(f"training failed: {last}; the ranks' whole output is in {log}")
