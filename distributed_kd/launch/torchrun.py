"""Ranks on this host through torchrun, their progress followed and their failure told in one line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distributed_kd import console
from distributed_kd.errors import RequestError, WorkError
from distributed_kd.recipe import Recipe

_POLL_SECONDS = 0.2
_STOP_SECONDS = 20.0


def launch(module: str, recipe: Recipe, arm: str, processes: int, log: Path) -> None:
    """Runs `python -m MODULE SPEC` as `processes` ranks, their output in `log`, until all end.

    Raises what a rank refused, or `WorkError` with the last line of the log. Ctrl-C stops the ranks first.
    """
    with tempfile.TemporaryDirectory(prefix="dkd-ranks-") as folder:
        notes = Path(folder)
        spec = notes / "spec.json"
        spec.write_text(
            json.dumps({"recipe": recipe.model_dump(mode="json"), "arm": arm, "notes": folder, "begun": time.time()})
        )
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
            "--master-addr", "127.0.0.1", "--master-port", str(_free_port()), "-m", module, str(spec),
        ]  # fmt: skip
        log.parent.mkdir(parents=True, exist_ok=True)
        console.say(f"train: starting {processes} rank{'s' * (processes > 1)} for the {arm}; their output is in {log}")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=_environment(processes), start_new_session=True
            )
            try:
                code = _follow(process, notes, arm)
            except BaseException:
                _stop(process)
                raise
        if code:
            raise _failure(notes, log, code)


def _follow(process: subprocess.Popen[bytes], notes: Path, arm: str) -> int:
    progress_file = notes / "progress.json"
    while process.poll() is None and not progress_file.exists():
        _wait(process)
    if not progress_file.exists():
        return process.wait()
    first = json.loads(progress_file.read_text())
    with console.progress(arm, first["total"]) as advance:
        while True:
            state = json.loads(progress_file.read_text())
            advance(state["done"], state["note"])
            if process.poll() is not None:
                return process.returncode
            _wait(process)


def _wait(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_POLL_SECONDS)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _failure(notes: Path, log: Path, code: int) -> Exception:
    told = sorted(notes.glob("error-*.json"))
    if told:
        error = json.loads(told[0].read_text())
        kind = RequestError if error["exit_code"] == RequestError.exit_code else WorkError
        return kind(error["message"])
    lines = [line for line in log.read_text(errors="replace").splitlines() if "Error" in line and "torch/" not in line]
    last = lines[0].strip() if lines else f"exit status {code}"
    return WorkError(f"training failed: {last}; the ranks' whole output is in {log}")


def _environment(processes: int) -> dict[str, str]:
    import torch

    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
