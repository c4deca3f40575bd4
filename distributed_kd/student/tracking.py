"""The curves of a training in TensorBoard, as it runs: `tensorboard --logdir WORKDIR/student/tensorboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_NOT_A_CURVE = ("step",)


def curves_of(line: dict[str, Any]) -> dict[str, float]:
    """A step's metrics by the names that they have in every tracker, `train/NAME`."""
    return {f"train/{name}": value for name, value in line.items() if name not in _NOT_A_CURVE}


class Curves:
    """Rank 0 has one. A training that goes on from step `resumed` writes over what came after it."""

    def __init__(self, folder: Path, recipe: str, resumed: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed)
        if not resumed:
            self._writer.add_text("recipe", f"```yaml\n{recipe}```")

    def add(self, line: dict[str, Any]) -> None:
        """A step's metrics."""
        for name, value in curves_of(line).items():
            self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._writer.close()
