"""What a rank computes with where there is no GPU: DeepSpeed is told so, and ranks share a host's processors."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from distributed_kd.launch.rank import ranks_here


def set_processors(environment: MutableMapping[str, str], ranks: int) -> None:
    """For `ranks` processes on this host. Before DeepSpeed is imported, which looks for an accelerator then."""
    import torch

    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))


def use_processors() -> None:
    """For this process, which another launcher has started as a rank and which has imported torch already."""
    import torch

    set_processors(os.environ, ranks_here(os.environ))
    if not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
