"""Running `dkd` as a user does: a process of its own, its exit code, its two streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent


AS_IT_IS = ("-m", "distributed_kd.cli")
# Where every moment is long: what is told of work that takes a while is told at once.
AT_ONCE = (
    "-c",
    """
import sys
from distributed_kd import console
console._WAIT_SECONDS = console._PLAIN_SECONDS = 0.0
from distributed_kd.cli import main
main(sys.argv[1:])
""",
)


def dkd(
    *arguments: str | Path, cwd: Path | None = None, program: tuple[str, str] = AS_IT_IS, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command line; a pytest session's own Ray and quietness are not handed on."""
    own = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "DKD_QUIET")}
    own |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        capture_output=True, text=True, env=own, cwd=cwd, timeout=500,
    )  # fmt: skip


def write_recipe(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command printed about its failure."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("dkd: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return lines[0].removeprefix("dkd: ")
