"""Whether another launcher has started this process as one rank of several, and what torch has to find then.

torchrun and DeepSpeed's launcher say RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in the environment, as
torch reads them. Slurm's `srun` says SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID and the hosts of the step;
`take_place` says the same in torch's words. A job's script itself has SLURM_PROCID too, and is no rank: only a step of
several tasks is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from distributed_kd.errors import RequestError

_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Below the ports that Linux gives to connections of its own accord.
_FIRST_PORT, _PORTS = 12_000, 20_000


def place_of(environment: Mapping[str, str]) -> dict[str, str] | None:
    """torch's five variables for this process; None where it is not one of several ranks.

    Raises `RequestError` where only some of them can be had.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        missing = [name for name in _TORCH if name not in environment]
        if missing:
            raise RequestError(
                f"RANK and WORLD_SIZE are set and {', '.join(missing)} not: start the ranks with torchrun, deepspeed "
                "or srun, or unset them to start ranks from here"
            )
        return {name: environment[name] for name in _TORCH}
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _slurms(environment)
    return None


def take_place() -> int | None:
    """Puts what torch has to find into this process's environment; the number of ranks, None where it is not one."""
    place = place_of(os.environ)
    if place is None:
        return None
    os.environ.update(place)
    return int(place["WORLD_SIZE"])


def is_first() -> bool:
    """Whether this process speaks for all ranks; one that is no rank speaks for itself."""
    return place_of(os.environ) is None or os.environ["RANK"] == "0"


def ranks_here(environment: Mapping[str, str]) -> int:
    """Ranks on this host, as torchrun, DeepSpeed's launcher or Slurm (`4(x2),1`) tell, or this one alone."""
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")
    said = next((environment[name] for name in names if name in environment), "1")
    return int(re.split(r"\D", said)[0])


def _slurms(environment: Mapping[str, str]) -> dict[str, str]:
    # With one GPU bound to each task, each of them calls its own the first.
    own_gpu = re.fullmatch(r"[^,]+", environment.get("CUDA_VISIBLE_DEVICES", "")) is not None
    number = int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": "0" if own_gpu else environment["SLURM_LOCALID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_FIRST_PORT + number % _PORTS),
    }


def first_host(hosts: str) -> str:
    """Of Slurm's short form, without asking `scontrol`, which containers rarely have: `n[07-9,12],m1` begins at n07."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)
    if first is None:
        raise RequestError(f"SLURM_STEP_NODELIST {hosts!r} names no host; set MASTER_ADDR to the first one's address")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])
