"""The replicas of a capture on a Ray cluster that grows, shrinks and fails.

Plain actors. `ray.util.ActorPool` takes the actors it is given and does not say which one died; Ray's own restarts hand
a shard to the same actor again but cannot tell a replica that hangs from one that works, nor use a node that joins; Ray
Data moves rows through the object store, which is what a capture must not do. Shards a second through two replicas that
do nothing (`benchmarks/scheduling.py`, two cores that others used as well): this loop 950, `ActorPool` 1280, Ray Data
56. A shard takes seconds to minutes, so none of them is what a capture waits for, up to thousands of replicas here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import ray

from distributed_kd import console
from distributed_kd.cache.manifest import FOLDER, CacheManifest, Receipt
from distributed_kd.errors import DkdError, RequestError, WorkError
from distributed_kd.launch.ray_cluster import RayCluster
from distributed_kd.recipe import Recipe
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import read_known, shard_name
from distributed_kd.teacher.replica import Replica
from distributed_kd.teacher.schedule import MOST_LOSSES

_ANSWER_SECONDS = 2.0


@dataclass(frozen=True)
class Event:
    """What became of a replica's work: `value` is a receipt where it is done, else why not in one line."""

    replica: str
    kind: Literal["done", "failed", "lost"]
    value: Any


class Fleet:
    """Starts replicas where the cluster has room, gives them shards and tells what comes back."""

    def __init__(self, recipe: Recipe, cluster: RayCluster) -> None:
        self._recipe = recipe
        self._cluster = cluster
        self._store = Store(recipe.workdir).child(FOLDER)
        self._uses_gpus = self._decide_device()
        self._handles: dict[str, Any] = {}
        self._placed: dict[Any, str] = {}  # the first answer of a replica that has been given a place, if it has
        self._preparing: dict[Any, str] = {}  # loading, or making the code tables
        self._tasks: dict[Any, str] = {}  # a shard's reference to its replica
        self._given: dict[str, tuple[int, str]] = {}  # by replica: its shard and the cache's fingerprint
        self._seen: dict[str, tuple[int, float]] = {}  # a working replica's progress, and since when it is that
        self._started = 0
        self._watched = time.monotonic()
        self.idle: list[str] = []

    @property
    def size(self) -> int:
        """Replicas that have loaded their teacher."""
        return len(self._handles) - len(self._preparing)

    def _decide_device(self) -> bool:
        """Whether replicas ask for GPUs: once for a capture, so that nodes that join later do not mix two devices'
        last bits in one cache."""
        asked = self._recipe.capture.device
        has_gpus = self._cluster.resources.get("GPU", 0) >= 1
        if asked == "gpu" and not has_gpus:
            console.say("cache: the cluster has no GPU now; replicas wait for one, since capture.device is gpu")
        return has_gpus if asked == "auto" else asked == "gpu"

    def fit(self, work: int) -> None:
        """Starts replicas, as there is work for: as many as are asked for, or as the cluster has places for now.

        Those that have no place wait for one, without a shard; a cluster that scales itself sees that they do.
        """
        places, options = self._places()
        wanted = self._recipe.capture.replicas
        if isinstance(wanted, int) and wanted > places and not self._started:
            console.say(f"cache: {wanted} replicas are asked for and {places} fit the cluster now; the others wait")
        count = min(max(1, work), wanted if isinstance(wanted, int) else max(1, places))
        for _ in range(count - len(self._handles)):
            self._start(options)

    def _places(self) -> tuple[int, dict[str, Any]]:
        """How many replicas the cluster can hold, and what each asks of Ray: a GPU, or processors and to see no GPU.

        The number of threads is the recipe's and not a share of the machine: sums over other numbers of threads differ
        in their last bits, and a shard's bytes must not depend on how many replicas there were.
        """
        whole = self._cluster.resources
        if self._uses_gpus:
            return int(whole.get("GPU", 0)), {"num_gpus": 1, "num_cpus": 1}
        processors = int(whole.get("CPU", 1))
        threads = min(self._recipe.capture.threads, max(1, processors))
        hidden = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}  # Ray hides none from those that ask for none
        return processors // threads, {"num_cpus": threads, "runtime_env": hidden}

    def _start(self, options: dict[str, Any]) -> None:
        remote: Any = ray.remote  # typed for functions
        actor = remote(**options, max_restarts=0, concurrency_groups={"watch": 1})(Replica)
        name = f"replica {self._started}"
        self._started += 1
        self._handles[name] = actor.remote(self._recipe)
        self._placed[self._ask_progress(name)] = name
        self._preparing[self._handles[name].load.remote()] = name

    def _ask_progress(self, replica: str) -> Any:
        return self._handles[replica].progress.options(concurrency_group="watch").remote()

    def make_tables(self, train_shards: list[int], known: Any) -> Any:
        """The codec's code tables, by the first replica that is there; by another one where that is lost.

        An error is raised as it is, `WorkError` where one replica after the other is lost.
        """
        reference, losses = None, 0
        while losses < MOST_LOSSES:
            if reference is None and self.idle:
                replica = self.idle.pop(0)
                reference = self._handles[replica].make_tables.remote(train_shards, known)
                self._preparing[reference] = replica
                self._seen[replica] = (-1, time.monotonic())
            for event in self.wait(1.0):
                console.say(f"cache: {event.replica} was lost: {event.value}")
                losses += 1
                self.fit(len(train_shards))
            if reference is not None and reference not in self._preparing:
                try:
                    return ray.get(reference)
                except ray.exceptions.RayActorError:
                    reference = None  # lost, as just said
        raise WorkError(f"{MOST_LOSSES} replicas were lost before they had made the code tables; mend the cause")

    def give(self, replica: str, shard: int, manifest: CacheManifest) -> None:
        self.idle.remove(replica)
        self._seen[replica] = (-1, time.monotonic())
        self._given[replica] = (shard, manifest.fingerprint)
        self._tasks[self._handles[replica].capture.remote(shard, manifest)] = replica

    def wait(self, seconds: float) -> list[Event]:
        """What came back, waiting for the first at most so long; replicas that have loaded become idle meanwhile.

        Raises the error of a replica that cannot load its teacher: it would be the same for all; `WorkError` where the
        cluster is gone.
        """
        self._cluster.check()
        references = [*self._tasks, *self._preparing, *self._placed]
        if not references:
            time.sleep(seconds)
            return []
        ready, _ = ray.wait(references, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return [event for reference in ready for event in self._events(reference)] + self._stalled()

    def _events(self, reference: Any) -> list[Event]:
        if reference in self._placed:
            # From here on it can hang; before, it may wait for a place as long as it takes.
            self._seen.setdefault(self._placed.pop(reference), (-1, time.monotonic()))
            return []
        prepared = self._preparing.pop(reference, None)
        replica = prepared or self._tasks.pop(reference)
        try:
            value = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if prepared:
                raise cause if isinstance(cause, DkdError) else WorkError(_line(cause)) from None
            self._is_idle(replica)
            return [Event(replica, "failed", _line(cause))]
        except ray.exceptions.RayError as error:
            return self._lose(replica, _line(error))
        self._is_idle(replica)
        return [] if prepared else [Event(replica, "done", value)]

    def _is_idle(self, replica: str) -> None:
        self._seen.pop(replica, None)
        self._given.pop(replica, None)
        self.idle.append(replica)

    def _lose(self, replica: str, why: str) -> list[Event]:
        """Ends the replica, which may only be out of reach; what it had finished by then is not done again."""
        ray.kill(self._handles.pop(replica))
        self._seen.pop(replica, None)
        receipt = self._finished(*self._given.pop(replica)) if replica in self._given else None
        done = [] if receipt is None else [Event(replica, "done", receipt)]
        return [*done, Event(replica, "lost", why)]

    def _finished(self, shard: int, fingerprint: str) -> Receipt | None:
        """The receipt of a shard that is in the store as it says; a repair begins with some that are not."""
        try:
            receipt = Receipt.find(self._store, fingerprint, shard)
            if receipt is not None:
                read_known(self._store, shard_name(shard), receipt.entry, "it is done again")
        except (RequestError, OSError):  # a store that cannot be read now: the shard is done again
            return None
        return receipt

    def _stalled(self) -> list[Event]:
        """Replicas that make no progress for too long, in loading or in work: they are ended, and lost."""
        limit = 60.0 * self._recipe.capture.stall_minutes
        if time.monotonic() - self._watched < limit / 4:
            return []
        working = [replica for replica in [*self._tasks.values(), *self._preparing.values()] if replica in self._seen]
        asked = {self._ask_progress(replica): replica for replica in working}
        ready, _ = ray.wait(list(asked), num_returns=max(1, len(asked)), timeout=_ANSWER_SECONDS) if asked else ([], [])
        now = self._watched = time.monotonic()
        for reference in ready:
            try:
                progress = ray.get(reference)
            except ray.exceptions.RayError:
                continue  # its work's reference tells
            if progress != self._seen[asked[reference]][0]:
                self._seen[asked[reference]] = (progress, now)
        late = [replica for replica in working if now - self._seen[replica][1] > limit]
        return [event for replica in late for event in self._end(replica)]

    def _end(self, replica: str) -> list[Event]:
        self._tasks = {reference: name for reference, name in self._tasks.items() if name != replica}
        self._preparing = {reference: name for reference, name in self._preparing.items() if name != replica}
        return self._lose(replica, f"no progress for {self._recipe.capture.stall_minutes:g} minutes")

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
