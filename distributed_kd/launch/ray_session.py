"""A Ray session for the stages that use one, and the results of its tasks with our errors as themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from distributed_kd import console
from distributed_kd.errors import DkdError, RequestError, WorkError
from distributed_kd.launch.stop import handler_kept

if TYPE_CHECKING:
    from distributed_kd.launch.ray_cluster import RayCluster


@contextmanager
def ray_session(address: str | None) -> Iterator[RayCluster]:
    """Joins the cluster at `address`, the one this process already belongs to, or starts a local one.

    A session that this call started ends with it; one that was there before is left running.
    """
    cluster = address or os.environ.get("RAY_ADDRESS")
    if cluster is None:
        # A local session belongs to this user and listens on loopback alone; the token that Ray would write at its
        # start outlives it, and the next head that somebody starts by hand would ask for it.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    from distributed_kd.launch.ray_cluster import RayCluster

    if ray.is_initialized():
        with closing(RayCluster()) as found:
            yield found
        return
    try:
        what = "starting Ray" if cluster is None else f"joining the Ray cluster at {cluster}"
        with console.waiting(what), handler_kept():
            if cluster is None:
                # "local" in so many words: without an address Ray joins any head that this machine has or had.
                ray.init(address="local", include_dashboard=False, configure_logging=False, log_to_driver=False)
            else:
                ray.init(address=cluster, configure_logging=False, log_to_driver=False)
    except ConnectionError as error:
        raise RequestError(f"no Ray cluster answers at {cluster}; check capture.address or leave it out") from error
    try:
        with closing(RayCluster()) as joined:
            yield joined
    finally:
        ray.shutdown()


@contextmanager
def task_errors() -> Iterator[None]:
    """Around `ray.get` and what calls it: a task's own `DkdError` is raised as itself, anything else as one line."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DkdError):
            raise error.cause from None
        raise WorkError(f"a Ray task failed: {type(error.cause).__name__}: {error.cause}") from error
    except ray.exceptions.RayError as error:
        raise WorkError(
            f"a Ray worker was lost: {str(error).splitlines()[0]}; run the same command to resume"
        ) from error
