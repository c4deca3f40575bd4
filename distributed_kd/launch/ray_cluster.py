"""Whether the Ray cluster that this process belongs to is still there, and what it has.

What Ray 2.60 does in a driver, tried: where the head dies, work that is given to actors already goes on, every call
that asks the head something waits, and after a minute the process is ended from C++ with Ray's own text. Where the
driver's own raylet dies, all its actors are ended, on whatever node, those it asks for afterwards never start, and
nothing is raised: it waits for good. So a thread of its own asks the head every few seconds, and `check` tells by how
long ago it answered: before Ray ends the process, and late enough for a head that is restarted with its state.
"""

from __future__ import annotations

import os
import threading
import time

import ray

from distributed_kd.errors import WorkError

_LOOK_SECONDS = 2.0
# Of the time after which Ray ends a process whose head does not answer; the rest is for the look that found none, and
# for the five seconds that leaving such a cluster takes.
_SHARE = 0.7
_RAYS_LIMIT = "RAY_gcs_rpc_server_reconnect_timeout_s"
_RAYS_LIMIT_SECONDS = 60.0


class RayCluster:
    """Looks after the cluster that `ray.init` has joined, until `close`."""

    def __init__(self) -> None:
        self._own_node = ray.get_runtime_context().get_node_id()
        self._limit = _SHARE * float(os.environ.get(_RAYS_LIMIT, _RAYS_LIMIT_SECONDS))
        self._ended = threading.Event()
        self._look()
        self._thread = threading.Thread(target=self._keep_looking, name="ray cluster", daemon=True)
        self._thread.start()

    @property
    def nodes(self) -> list[dict[str, float]]:
        """What each of its nodes has, in work or not, a few seconds ago."""
        return [node["Resources"] for node in self._nodes if node["Alive"]]

    def check(self) -> None:
        """Raises `WorkError` when nothing can come back from the cluster any more."""
        if self._answered + self._limit < time.monotonic():
            why = f"the head of the Ray cluster has not answered for {self._limit:.0f} s"
        elif not any(node["Alive"] for node in self._nodes if node["NodeID"] == self._own_node):
            why = "the Ray node that this command runs on has died"
        else:
            return
        raise WorkError(f"{why}; what is written stays good: start Ray again and run the same command")

    def close(self) -> None:
        self._ended.set()
        self._thread.join(timeout=_LOOK_SECONDS)  # one that waits for a head that is gone ends with the process

    def _keep_looking(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                self._look()
            except Exception:  # a head that is being restarted: `check` tells when it has been for too long
                continue

    def _look(self) -> None:
        self._nodes = ray.nodes()
        self._answered = time.monotonic()
