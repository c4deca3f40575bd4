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
from distributed_kd.errors import DkdError, WorkError
from distributed_kd.recipe import Recipe
from distributed_kd.teacher.replica import SHARDS, Replica
from distributed_kd.teacher.schedule import MOST_LOSSES

_ANSWER_SECONDS = 2.0


@dataclass(frozen=True)
class Event:
    """What became of a shard, or of a replica with all that it had: `value` is a receipt where the shard is done, else
    why not in one line."""

    replica: str
    kind: Literal["done", "failed", "lost"]
    value: Any
    shard: int | None = None  # None where the replica was lost


class Fleet:
    """Starts replicas where the cluster has room, gives them shards and tells what comes back."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._handles: dict[str, Any] = {}
        self._tasks: dict[Any, tuple[str, int]] = {}  # what is in work: its reference to replica and shard
        self._held: dict[str, int] = {}  # a loaded replica to how many shards it has
        self._loading: dict[Any, str] = {}
        self._seen: dict[str, tuple[int, float]] = {}  # a working replica's progress, and since when it is that
        self._started = 0
        self._watched = time.monotonic()

    @property
    def size(self) -> int:
        """Replicas that have loaded their teacher."""
        return len(self._held)

    def with_room(self, waiting: int) -> list[str]:
        """Replicas that another shard can be given to, once for each, emptiest first.

        Towards the end, when fewer shards wait than there are replicas, only those that have none: a shard that waits
        behind another one would keep everybody waiting.
        """
        most = SHARDS if waiting >= self.size else 1
        return sorted((name for name, held in self._held.items() if held < most), key=self._held.__getitem__)

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
        devices = self._recipe.teachers[0].devices_per_replica
        threads = devices * min(self._recipe.capture.threads, max(1, processors))
        if gpus:
            return gpus // devices, {"num_gpus": devices, "num_cpus": devices}
        return processors // threads, {"num_cpus": min(threads, processors)}

    def _start(self, resources: dict[str, Any]) -> None:
        remote: Any = ray.remote  # typed for functions
        actor = remote(**resources, max_restarts=0, concurrency_groups={"watch": 1, "shards": SHARDS})(Replica)
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
            while not self._held and not lost:
                lost = self.wait(1.0)
            if self._held:
                replica = next(iter(self._held))
                try:
                    return ray.get(self._handles[replica].make_tables.remote(train_shards, known))
                except ray.exceptions.RayActorError as error:
                    self._forget(replica)
                    lost = [Event(replica, "lost", _line(error))]
            for event in lost:
                console.say(f"cache: {event.replica} was lost: {event.value}")
            self.fit(len(train_shards))
        raise WorkError(f"{MOST_LOSSES} replicas were lost before they had made the code tables; mend the cause")

    def give(self, replica: str, shard: int, manifest: CacheManifest) -> None:
        self._held[replica] += 1
        self._seen.setdefault(replica, (-1, time.monotonic()))
        capture = self._handles[replica].capture.options(concurrency_group="shards")
        self._tasks[capture.remote(shard, manifest)] = (replica, shard)

    def wait(self, seconds: float) -> list[Event]:
        """What came back, waiting for the first at most so long; replicas that have loaded get room meanwhile.

        What a replica has finished comes before its loss. Raises the error of a replica that cannot load its teacher:
        it would be the same for all.
        """
        references = [*self._tasks, *self._loading]
        if not references:
            time.sleep(seconds)
            return []
        ray.wait(references, num_returns=1, timeout=seconds)
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        found, gone = [], {}
        for reference in ready:
            try:
                value = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                found += self._raised(reference, error.cause)
            except ray.exceptions.RayError as error:
                replica = self._loading.get(reference) or self._tasks[reference][0]
                gone[replica] = _line(error)
            else:
                found += self._returned(reference, value)
        for replica, reason in gone.items():
            self._forget(replica)
            found.append(Event(replica, "lost", reason))
        return found + self._stalled()

    def _returned(self, reference: Any, value: Any) -> list[Event]:
        loaded = self._loading.pop(reference, None)
        if loaded:
            self._held[loaded] = 0
            return []
        replica, shard = self._finished(reference)
        return [Event(replica, "done", value, shard)]

    def _raised(self, reference: Any, cause: BaseException) -> list[Event]:
        if reference in self._loading:
            raise cause if isinstance(cause, DkdError) else WorkError(_line(cause)) from None
        replica, shard = self._finished(reference)
        return [Event(replica, "failed", _line(cause), shard)]

    def _finished(self, reference: Any) -> tuple[str, int]:
        replica, shard = self._tasks.pop(reference)
        self._held[replica] -= 1
        self._seen[replica] = (-1, time.monotonic())
        return replica, shard

    def _forget(self, replica: str) -> None:
        """The replica and all that is known of it, other references of its included."""
        del self._handles[replica]
        self._held.pop(replica, None)
        self._seen.pop(replica, None)
        self._tasks = {reference: own for reference, own in self._tasks.items() if own[0] != replica}
        self._loading = {reference: own for reference, own in self._loading.items() if own != replica}

    def _stalled(self) -> list[Event]:
        """Replicas in which no position has passed the teacher for too long: they are ended, and lost."""
        limit = 60.0 * self._recipe.capture.stall_minutes
        if time.monotonic() - self._watched < limit / 4:
            return []
        working = [replica for replica, held in self._held.items() if held]
        asked = {
            self._handles[replica].progress.options(concurrency_group="watch").remote(): replica for replica in working
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
        return [self._end(replica) for replica in working if now - self._seen[replica][1] > limit]

    def _end(self, replica: str) -> Event:
        ray.kill(self._handles[replica])
        self._forget(replica)
        return Event(replica, "lost", f"no progress for {self._recipe.capture.stall_minutes:g} minutes")

    def peak_memory_bytes(self) -> int:
        """The largest of the replicas'; 0 where none answers."""
        asked = [self._handles[replica].peak_memory_bytes.remote() for replica in self._held]
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
