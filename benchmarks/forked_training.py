"""Many short trainings of one process: each in a fork of a process that has torch and DeepSpeed imported.

To import them anew takes longer than such a training does.
"""

from __future__ import annotations

import multiprocessing
import os
import sys

from distributed_kd import stages
from distributed_kd.launch.processors import set_processors
from distributed_kd.recipe import load

_PROCESSES = multiprocessing.get_context("forkserver")
_IMPORTED = [
    "__main__", "distributed_kd.student.train", "distributed_kd.models.feature_classifier",
    "deepspeed.runtime.zero.muon.muon_optimizer",
]  # fmt: skip


def set_up() -> None:
    """Before the first training."""
    set_processors(os.environ, ranks=1)
    _PROCESSES.set_forkserver_preload(_IMPORTED)


def train(file: str, overrides: list[str]) -> None:
    """The recipe's student, from what is prepared and cached. Ends the program where it fails."""
    own = _PROCESSES.Process(target=_train_as_the_one_rank, args=(file, overrides))
    own.start()
    own.join()
    if own.exitcode:
        raise SystemExit(own.exitcode)


def _train_as_the_one_rank(file: str, overrides: list[str]) -> None:
    from torch.distributed import TCPStore

    # As torchrun's agent does: a port that is held from the moment it is chosen.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # DeepSpeed talks, and stdout is for the report
    os.environ.update(
        RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )  # fmt: skip
    stages.train(load(file, overrides))
