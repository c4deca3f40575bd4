"""The replicas of a capture on a Ray cluster that grows, shrinks and fails.

Plain actors. `ray.util.ActorPool` takes the actors it is given and does not say which one died; Ray's own restarts hand
a shard to the same actor again but cannot tell a replica that hangs from one that works, nor use a node that joins; Ray
Data moves rows through the object store, which is what a capture must not do. Shards a second through two replicas that
do nothing (`benchmarks/scheduling.py`, two cores): this loop 1,910, `ActorPool` 1,670, Ray Data 66. A shard takes
seconds to minutes, so none of them is what a capture waits for, up to thousands of replicas here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import ray

from distributed_kd import console
from distributed_kd.cache.manifest import CacheManifest, Receipt, store_of
from distributed_kd.errors import DkdError, FullDisk, RequestError, StoreError, StoreRefused, WorkError
from distributed_kd.launch.ray_cluster import RayCluster
from distributed_kd.recipe import Recipe
from distributed_kd.store.index import read_known, shard_name
from distributed_kd.teacher.computed import Computed
from distributed_kd.teacher.replica import SHARDS, Replica
from distributed_kd.teacher.schedule import MOST_ERRORS, MOST_LOSSES

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

    def __init__(self, recipe: Recipe, cluster: RayCluster) -> None:
        self._recipe = recipe
        self._cluster = cluster
        self._store = store_of(recipe)
        self._computed = Computed.read(self._store)  # by the first replica that has a place, where it is not yet said
        self._uses_gpus = self._decide_device()
        self._handles: dict[str, Any] = {}
        self._unplaced: dict[Any, str] = {}  # the first answer, due once it has a place
        self._preparing: dict[Any, str] = {}  # saying what it computes in, loading, or making the code tables
        self._held: dict[str, int] = {}  # how many shards each of the others has
        self._tasks: dict[Any, tuple[str, int, str]] = {}  # what is in work: replica, shard, the cache's fingerprint
        self._seen: dict[str, tuple[int, float]] = {}  # a working replica's progress, and since when it is that
        self._started = 0
        self._watched = self._counted = time.monotonic()
        self._store_failures = 0  # one after the other
        self._has_told_of_device = False
        self.device_seconds = 0.0  # for which replicas had a place

    @property
    def size(self) -> int:
        """Replicas that have loaded their teacher."""
        return len(self._held)

    @property
    def placed(self) -> int:
        """Replicas that the cluster has given a place, those included that still load their teacher."""
        return len(self._handles) - len(self._unplaced)

    def with_room(self, waiting: int) -> list[str]:
        """Replicas that another shard can be given to, once for each, emptiest first.

        Towards the end, when fewer shards wait than there are replicas, only those that have none: a shard that waits
        behind another one would keep everybody waiting.
        """
        most = SHARDS if waiting >= self.size else 1
        return sorted((name for name, held in self._held.items() if held < most), key=self._held.__getitem__)

    def _decide_device(self) -> bool:
        """Whether replicas ask for GPUs: once for a capture, so that nodes that join later do not mix two devices'
        last bits in one cache."""
        asked = self._recipe.capture.device
        has_gpus = any(own.get("GPU", 0) >= 1 for own in self._cluster.nodes)
        if asked == "gpu" and not has_gpus:
            console.say("cache: the cluster has no GPU now; replicas wait for one, since capture.device is gpu")
        return has_gpus if asked == "auto" else asked == "gpu"

    def fit(self, work: int) -> None:
        """Starts replicas, as there is work for: as many as are asked for, or as the cluster has places for now.

        Those that have no place wait for one, without a shard; a cluster that scales itself sees that they do.
        """
        places, options = self.places()
        wanted = self._recipe.capture.replicas
        if isinstance(wanted, int) and wanted > places and not self._started:
            console.say(f"cache: {wanted} replicas are asked for and {places} fit the cluster now; the others wait")
        count = min(max(1, work), wanted if isinstance(wanted, int) else max(1, places))
        for _ in range(count - len(self._handles)):
            self._start(options)

    def places(self) -> tuple[int, dict[str, Any]]:
        """How many replicas the cluster can hold, and what each asks of Ray: a GPU, or processors and to see no GPU.

        The number of threads is the recipe's and not a share of the machine: sums over other numbers of threads differ
        in their last bits, and a shard's bytes must not depend on how many replicas there were.
        """
        nodes, devices = self._cluster.nodes, self._recipe.teachers[0].devices_per_replica
        if self._uses_gpus:  # all devices of a replica are on one node
            gpus = sum(int(own.get("GPU", 0)) // devices for own in nodes)
            return gpus, {"num_gpus": devices, "num_cpus": devices}
        processors = [int(own.get("CPU", 0)) for own in nodes]
        threads = max(1, min(devices * self._recipe.capture.threads, max(processors)))
        hidden = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}  # Ray hides none from those that ask for none
        return sum(own // threads for own in processors), {"num_cpus": threads, "runtime_env": hidden}

    def _start(self, options: dict[str, Any]) -> None:
        remote: Any = ray.remote  # typed for functions
        actor = remote(**options, max_restarts=0, concurrency_groups={"watch": 1, "shards": SHARDS})(Replica)
        name = f"replica {self._started}"
        self._started += 1
        self._handles[name] = actor.remote(self._recipe)
        self._unplaced[self._ask_progress(name)] = name
        self._preparing[self._handles[name].computes_in.remote()] = name

    def _ask_progress(self, replica: str) -> Any:
        return self._handles[replica].progress.options(concurrency_group="watch").remote()

    def make_tables(self, train_shards: range, known: Any) -> Any:
        """The codec's code tables, by the first replica that is there; by another one where that is lost.

        An error is raised as it is, `WorkError` where one replica after the other is lost.
        """
        reference, losses = None, 0
        while losses < MOST_LOSSES:
            if reference is None and self._held:
                replica, _ = self._held.popitem()
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
        self._held[replica] += 1
        self._seen.setdefault(replica, (-1, time.monotonic()))
        capture = self._handles[replica].capture.options(concurrency_group="shards")
        self._tasks[capture.remote(shard, manifest)] = (replica, shard, manifest.fingerprint)

    def wait(self, seconds: float) -> list[Event]:
        """What came back, waiting for the first at most so long; replicas that have loaded get room meanwhile.

        Raises the error of a replica that cannot load its teacher, and a store's: they would be the same for all;
        `WorkError` where the cluster is gone.
        """
        self._cluster.check()
        self._count()
        references = [*self._tasks, *self._preparing, *self._unplaced]
        if not references:
            time.sleep(seconds)
            return []
        ready, _ = ray.wait(references, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return [event for reference in ready for event in self._events(reference)] + self._stalled()

    def _count(self) -> None:
        now = time.monotonic()
        self.device_seconds += (now - self._counted) * self.placed * self._recipe.teachers[0].devices_per_replica
        self._counted = now

    def _events(self, reference: Any) -> list[Event]:
        if reference in self._unplaced:
            # From here on it can hang; before, it may wait for a place as long as it takes.
            self._seen.setdefault(self._unplaced.pop(reference), (-1, time.monotonic()))
            return []
        if reference in self._preparing:
            return self._prepared(reference)
        if reference not in self._tasks:
            return []  # of a replica that was lost a moment ago
        replica, shard, _ = self._tasks[reference]
        try:
            event = Event(replica, "done", ray.get(reference), shard)
            self._store_failures = 0
        except ray.exceptions.RayTaskError as error:
            self._end_where_nothing_can_be_written(error.cause)
            event = Event(replica, "failed", _line(error.cause), shard)
        except ray.exceptions.RayError as error:
            return self._lose(replica, _line(error))
        del self._tasks[reference]
        self._held[replica] -= 1
        if self._held[replica]:
            self._seen[replica] = (-1, time.monotonic())
        else:
            self._seen.pop(replica, None)
        return [event]

    def _end_where_nothing_can_be_written(self, cause: BaseException) -> None:
        """Raises an error that is the store's: no other shard would fare better, and each takes minutes to fail."""
        if isinstance(cause, StoreError):
            self._store_failures += 1
            if isinstance(cause, FullDisk | StoreRefused) or self._store_failures >= MOST_ERRORS:
                raise cause from None

    def _prepared(self, reference: Any) -> list[Event]:
        replica = self._preparing[reference]
        try:
            said = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, DkdError) else WorkError(_line(error.cause)) from None
        except ray.exceptions.RayError as error:
            return self._lose(replica, _line(error))
        del self._preparing[reference]
        if isinstance(said, Computed):
            self._preparing[self._handles[replica].load.remote(self._settled(said))] = replica
            return []
        self._seen.pop(replica, None)
        self._held[replica] = 0
        return []

    def _settled(self, found: Computed) -> Computed:
        """What all replicas compute in, as a replica has found it: the first one of the cache decides."""
        if self._computed is None:
            found.put(self._store)
            self._computed = found
        elif found.device != self._computed.device and not self._has_told_of_device:
            self._has_told_of_device = True
            console.say(
                f"cache: it was begun on {self._computed.device} in {self._computed.dtype}, which {found.device} goes "
                "on in; its last bits may be other ones"
            )
        return self._computed

    def _lose(self, replica: str, why: str) -> list[Event]:
        """Ends the replica, which may only be out of reach; what it had finished by then is not done again."""
        ray.kill(self._handles.pop(replica))
        self._seen.pop(replica, None)
        self._held.pop(replica, None)
        for references in (self._unplaced, self._preparing):
            for reference in [reference for reference, own in references.items() if own == replica]:
                del references[reference]
        had = {reference: own for reference, own in self._tasks.items() if own[0] == replica}
        done = []
        for reference, (_, shard, fingerprint) in had.items():
            del self._tasks[reference]
            receipt = self._finished(shard, fingerprint)
            if receipt is not None:
                done.append(Event(replica, "done", receipt, shard))
        return [*done, Event(replica, "lost", why)]

    def _finished(self, shard: int, fingerprint: str) -> Receipt | None:
        """The receipt of a shard that is in the store as it says; a repair begins with some that are not."""
        try:
            receipt = Receipt.find(self._store, fingerprint, shard)
            if receipt is not None:
                read_known(self._store, shard_name(shard), receipt.entry, "it is done again")
        except (RequestError, StoreError):  # a store that cannot be read now: the shard is done again
            return None
        return receipt

    def _stalled(self) -> list[Event]:
        """Replicas that make no progress for too long, in loading or in work: they are ended, and lost."""
        limit = 60.0 * self._recipe.capture.stall_minutes
        if time.monotonic() - self._watched < limit / 4:
            return []
        working = list(self._seen)
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
        why = f"no progress for {self._recipe.capture.stall_minutes:g} minutes"
        return [event for replica in late for event in self._lose(replica, why)]

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
