"""The ranks of a training, joined: torch's process group, the watch over it, and one line where it ends badly."""

from __future__ import annotations

import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

from distributed_kd.errors import DkdError, Stopped, WorkError
from distributed_kd.launch.watch import Verdict, Watch


@contextmanager
def joined_ranks(minutes: float, tell: Callable[[Verdict], None], debug: bool) -> Iterator[Watch]:
    """Joins the process group that the environment tells of, or the one that is there; leaves it at the end.

    minutes: after which a collective gives up, and all ranks have ended where one of them is lost.
    An error of the block ends this process once `tell` has heard why, and all other ranks with it: they wait in a
    collective. But `Stopped`, which all ranks raise, leaves a process of Ray's be, which would be started anew.
    Raises `WorkError` where the ranks do not come together.
    """
    timeout = timedelta(minutes=minutes)
    watch = _join(timeout, tell)
    stopped = None
    try:
        yield watch
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if isinstance(error, Stopped) and threading.current_thread() is not threading.main_thread():
            stopped = error
        else:
            _end(watch, error, debug)
    try:
        watch.meet("end")
    except BaseException as error:
        _end(watch, error, debug)
    watch.close()
    import torch

    torch.distributed.destroy_process_group()
    if stopped is not None:
        raise stopped


def _end(watch: Watch, error: BaseException, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    verdict = Verdict("refused", str(error), error.exit_code) if isinstance(error, DkdError) else watch.why(error)
    watch.end_process(verdict)


def _join(timeout: timedelta, tell: Callable[[Verdict], None]) -> Watch:
    import torch

    # DeepSpeed's collectives go by names that torch 2.13 gives up, which each of them would say in each step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    first = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=timeout)
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return Watch(rank, world, timeout, tell)
    except RuntimeError as error:  # torch's for whatever keeps ranks apart
        raise WorkError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} does not come together with the others at "
            f"{first}: {' '.join(str(error).split())[:200]}; are all of them started, and is GLOO_SOCKET_IFNAME or "
            "NCCL_SOCKET_IFNAME the network between the hosts?"
        ) from error


def print_line(verdict: Verdict) -> None:
    print(f"dkd: {verdict.message}", file=sys.stderr, flush=True)
