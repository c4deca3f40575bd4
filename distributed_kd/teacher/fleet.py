"""The replicas of a capture on a Ray cluster that grows, shrinks and fails.

Plain actors. `ray.util.ActorPool` takes the actors it is given and does not say which one died; Ray's own restarts hand
a shard to the same actor again but cannot tell a replica that hangs from one that works, nor use a node that joins; Ray
Data moves rows through the object store, which is what a capture must not do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import ray

from distributed_kd import console
from distributed_kd.cache.manifest import CacheManifest
from distributed_kd.errors import DkdError, FullDisk, StoreError, StoreRefused, WorkError
from distributed_kd.recipe import Recipe
from distributed_kd.teacher.replica import Replica
from distributed_kd.teacher.schedule import MOST_ERRORS, MOST_LOSSES

_ANSWER_SECONDS = 2.0


@dataclass(frozen=True)
class Event:
    """What became of a replica's work: `value` is a receipt where it is done, else why not in one line."""

    replica: str
    kind: Literal["done", "failed", "lost"]
    value: Any


class Fleet:
    """Starts replicas where the cluster has room, gives them shards and tells what comes back."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._handles: dict[str, Any] = {}
        self._tasks: dict[Any, str] = {}  # a shard's reference to its replica
        self._loading: dict[Any, str] = {}
        self._seen: dict[str, tuple[int, float]] = {}  # a working replica's progress, and since when it is that
        self._started = 0
        self._watched = time.monotonic()
        self._store_failures = 0  # one after the other
        self.idle: list[str] = []

    @property
    def size(self) -> int:
        """Replicas that have loaded their teacher."""
        return len(self._handles) - len(self._loading)

    def fit(self, work: int) -> None:
        """Starts replicas, as there is work for: as many as are asked for, or as the cluster has places for now.

        Those that have no place wait for one, without a shard; a cluster that scales itself sees that they do.
        """
        places, resources = self._places()
        wanted = self._recipe.capture.replicas
        if isinstance(wanted, int) and wanted > places and not self._started:
            console.say(f"cache: {wanted} replicas are asked for and {places} fit the cluster now; the others wait")
        count = min(max(1, work), wanted if isinstance(wanted, int) else max(1, places))
        for _ in range(count - len(self._handles)):
            self._start(resources)

    def _places(self) -> tuple[int, dict[str, Any]]:
        """How many replicas the cluster can hold, and what each asks of Ray: a GPU if there are any, else processors.

        The number of threads is the recipe's and not a share of the machine: sums over other numbers of threads differ
        in their last bits, and a shard's bytes must not depend on how many replicas there were.
        """
        whole = ray.cluster_resources()
        gpus, processors = int(whole.get("GPU", 0)), int(whole.get("CPU", 1))
        threads = min(self._recipe.capture.threads, max(1, processors))
        if gpus:
            return gpus, {"num_gpus": 1, "num_cpus": 1}
        return processors // threads, {"num_cpus": threads}

    def _start(self, resources: dict[str, Any]) -> None:
        remote: Any = ray.remote  # typed for functions
        actor = remote(**resources, max_restarts=0, concurrency_groups={"watch": 1})(Replica)
        name = f"replica {self._started}"
        self._started += 1
        self._handles[name] = actor.remote(self._recipe)
        self._loading[self._handles[name].load.remote()] = name

    def make_tables(self, train_shards: list[int], known: Any) -> Any:
        """The codec's code tables, by the first replica that is there; by another one where that is lost.

        An error is raised as it is, `WorkError` where one replica after the other is lost.
        """
        for _ in range(MOST_LOSSES):
            lost: list[Event] = []
            while not self.idle and not lost:
                lost = self.wait(1.0)
            if self.idle:
                replica = self.idle[0]
                try:
                    return ray.get(self._handles[replica].make_tables.remote(train_shards, known))
                except ray.exceptions.RayActorError as error:
                    self.idle.remove(replica)
                    del self._handles[replica]
                    lost = [Event(replica, "lost", _line(error))]
            for event in lost:
                console.say(f"cache: {event.replica} was lost: {event.value}")
            self.fit(len(train_shards))
        raise WorkError(f"{MOST_LOSSES} replicas were lost before they had made the code tables; mend the cause")

    def give(self, replica: str, shard: int, manifest: CacheManifest) -> None:
        self.idle.remove(replica)
        self._seen[replica] = (-1, time.monotonic())
        self._tasks[self._handles[replica].capture.remote(shard, manifest)] = replica

    def wait(self, seconds: float) -> list[Event]:
        """What came back, waiting for the first at most so long; replicas that have loaded become idle meanwhile.

        Raises the error of a replica that cannot load its teacher, and a store's: they would be the same for all.
        """
        references = [*self._tasks, *self._loading]
        if not references:
            time.sleep(seconds)
            return []
        ray.wait(references, num_returns=1, timeout=seconds)
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        found = [self._event(reference) for reference in ready]
        return [event for event in found if event is not None] + self._stalled()

    def _event(self, reference: Any) -> Event | None:
        loaded = self._loading.pop(reference, None)
        replica = loaded or self._tasks.pop(reference)
        self._seen.pop(replica, None)
        try:
            value = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if loaded:
                raise cause if isinstance(cause, DkdError) else WorkError(_line(cause)) from None
            self._end_where_nothing_can_be_written(cause)
            self.idle.append(replica)
            return Event(replica, "failed", _line(cause))
        except ray.exceptions.RayError as error:
            del self._handles[replica]
            return Event(replica, "lost", _line(error))
        self.idle.append(replica)
        self._store_failures = 0
        return None if loaded else Event(replica, "done", value)

    def _end_where_nothing_can_be_written(self, cause: Exception) -> None:
        """Raises an error that is the store's: no other shard would fare better, and each takes minutes to fail."""
        if isinstance(cause, StoreError):
            self._store_failures += 1
            if isinstance(cause, FullDisk | StoreRefused) or self._store_failures >= MOST_ERRORS:
                raise cause from None

    def _stalled(self) -> list[Event]:
        """Replicas in which no position has passed the teacher for too long: they are ended, and lost."""
        limit = 60.0 * self._recipe.capture.stall_minutes
        if time.monotonic() - self._watched < limit / 4:
            return []
        working = dict(self._tasks)
        asked = {
            self._handles[replica].progress.options(concurrency_group="watch").remote(): replica
            for replica in working.values()
        }
        ready, _ = ray.wait(list(asked), num_returns=max(1, len(asked)), timeout=_ANSWER_SECONDS) if asked else ([], [])
        now = self._watched = time.monotonic()
        for reference in ready:
            try:
                positions = ray.get(reference)
            except ray.exceptions.RayError:
                continue  # its shard's reference tells
            if positions != self._seen[asked[reference]][0]:
                self._seen[asked[reference]] = (positions, now)
        return [
            self._end(reference, replica)
            for reference, replica in working.items()
            if now - self._seen[replica][1] > limit
        ]

    def _end(self, reference: Any, replica: str) -> Event:
        ray.kill(self._handles.pop(replica))
        del self._tasks[reference], self._seen[replica]
        return Event(replica, "lost", f"no progress for {self._recipe.capture.stall_minutes:g} minutes")

    def peak_memory_bytes(self) -> int:
        """The largest of the idle replicas'; 0 where none answers."""
        asked = [self._handles[replica].peak_memory_bytes.remote() for replica in self.idle]
        ready, _ = ray.wait(asked, num_returns=max(1, len(asked)), timeout=_ANSWER_SECONDS) if asked else ([], [])
        found = [0]
        for reference in ready:
            try:
                found.append(ray.get(reference))
            except ray.exceptions.RayError:
                continue
        return max(found)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, DkdError) else f"{type(error).__name__}: {text}"
