"""What this machine, or the cluster and store of a recipe, lacks: each with its fix."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from distributed_kd import console
from distributed_kd.errors import DkdError
from distributed_kd.launch import torchrun
from distributed_kd.launch.processors import set_processors
from distributed_kd.models.locate import cache_folder
from distributed_kd.recipe import Recipe
from distributed_kd.store.filesystem import Store
from distributed_kd.student.trackers import is_installed

_RANKS_SECONDS = 300  # a first start compiles for a minute or two
_RAY_SECONDS = 60
_LEAST_DISK = 10 << 30  # bytes
_LEAST_SHARED = 1 << 30
_MOST_SKEW = 10.0  # seconds; a capture's lease counts 90
_OF_SCHEME = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}  # URL's -> (package, our extra)


@dataclass(frozen=True)
class Finding:
    """missing: a recipe cannot run; warning: it can, and may be slow or stop."""

    check: str
    state: Literal["ok", "warning", "missing"]
    found: str
    fix: str = ""


def examine(recipe: Recipe | None) -> Iterator[Finding]:
    """Every check in turn. A check that fails in a way of its own is a finding too."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", _python), ("torch", _torch), ("ranks", lambda: _ranks(recipe)), ("ray", lambda: _ray(recipe)),
        ("disk", _disk), ("shared memory", _shared_memory),
    ]  # fmt: skip
    if recipe is not None:
        checks += [("packages", lambda: _packages(recipe))]
        checks += [("store", lambda: _store(recipe)), ("clock", lambda: _clock(recipe))]
    for name, check in checks:
        try:
            with console.waiting(f"doctor: {name}"):
                finding = check()
            yield finding
        except DkdError as error:
            yield Finding(name, "missing", str(error), "as it says")
        except Exception as error:  # what is wrong with a machine has many names
            yield Finding(name, "missing", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "mend it")


def facts(findings: list[Finding]) -> dict[str, Any]:
    return {"ok": all(one.state != "missing" for one in findings), "checks": [asdict(one) for one in findings]}


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.machine()}, {len(os.sched_getaffinity(0))} processors"
    return Finding("python", "ok", found)


def _torch() -> Finding:
    import torch

    count = torch.cuda.device_count()
    devices = f"{count} x {torch.cuda.get_device_name()}" if count else "no GPU"
    found = f"{torch.__version__}, {devices}"
    if not count and shutil.which("nvidia-smi"):
        return Finding("torch", "missing", found, "this torch does not see the GPU: install its CUDA build")
    return Finding("torch", "ok", found)


def _ranks(recipe: Recipe | None) -> Finding:
    """Two ranks, or one a GPU, start as a training's do and add a number."""
    import torch

    said = None if recipe is None else recipe.trainer.processes
    count = said if isinstance(said, int) else torch.cuda.device_count() or 2
    environment = dict(os.environ)
    set_processors(environment, count)
    command = torchrun.command(count, "distributed_kd.launch.try_ranks")
    begun = time.monotonic()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_RANKS_SECONDS)
    except subprocess.TimeoutExpired:
        fix = "set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to the network between the ranks"
        return Finding("ranks", "missing", f"{count} ranks did not come together in {_RANKS_SECONDS} s", fix)
    backend = "NCCL" if torch.cuda.is_available() else "gloo"
    if done.returncode == 0:
        return Finding("ranks", "ok", f"{count} over {backend}, {time.monotonic() - begun:.0f} s")
    last = next((line for line in reversed(done.stderr.splitlines()) if "Error" in line), "no reason was given")
    fix = "install a C++ compiler (g++)" if shutil.which("g++") is None else "see what it says"
    return Finding("ranks", "missing", f"{count} over {backend}: {last.strip()[:200]}", fix)


def _ray(recipe: Recipe | None) -> Finding:
    """The cluster that the recipe or RAY_ADDRESS names; without one a local one is started when it is needed."""
    import ray

    address = (recipe.capture.address if recipe is not None else None) or os.environ.get("RAY_ADDRESS")
    if address is None:
        return Finding("ray", "ok", f"{ray.__version__}; no cluster is named, so a local one is started when needed")
    script = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print(len(ray.nodes()))"
    fix = f"start a head there, open its port to this host, and have ray {ray.__version__} and this Python on both"
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, address], capture_output=True, text=True, timeout=_RAY_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Finding("ray", "missing", f"no answer from {address} in {_RAY_SECONDS} s", fix)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1].strip()
        return Finding("ray", "missing", f"{address}: {last[:200]}", fix)
    return Finding("ray", "ok", f"{ray.__version__}, {address} answers with {done.stdout.split()[-1]} nodes")


def _disk() -> Finding:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < _LEAST_DISK:
        fix = "make room, or set DKD_CACHE to a larger disk: models and shards are kept there"
        return Finding("disk", "warning", f"{_gib(free)} free for models and shards", fix)
    return Finding("disk", "ok", f"{_gib(free)} free for models and shards")


def _shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free
    if free < _LEAST_SHARED:
        fix = "give the container more (docker run --shm-size=8g, an emptyDir of medium Memory)"
        return Finding("shared memory", "warning", f"{_gib(free)} free in /dev/shm", fix)
    return Finding("shared memory", "ok", f"{_gib(free)} free in /dev/shm")


def _packages(recipe: Recipe) -> Finding:
    """Those of our extras that the recipe asks for."""
    scheme = recipe.workdir.partition("://")[0] if "://" in recipe.workdir else ""
    wanted = [_OF_SCHEME[scheme]] if scheme in _OF_SCHEME else []
    wanted += [("peft", "lora")] if recipe.student.lora is not None else []
    wanted += [(name, name) for name in recipe.trainer.track]
    missing = [extra for package, extra in wanted if not is_installed(package)]
    if missing:
        fix = f"pip install 'distributed-kd[{','.join(missing)}]'"
        return Finding("packages", "missing", f"the recipe needs what is not installed: {', '.join(missing)}", fix)
    return Finding("packages", "ok", ", ".join(package for package, _ in wanted) or "no extra is needed")


def _store(recipe: Recipe) -> Finding:
    """A write, a read and a delete."""
    store = Store(recipe.workdir)
    data = os.urandom(64)
    with _probe(store, data) as name:
        is_same = store.read(name) == data
    if not is_same:
        return Finding("store", "missing", f"{store.uri} gave other bytes than were written", "use another store")
    return Finding("store", "ok", f"{store.uri} was written, read and deleted in")


def _clock(recipe: Recipe) -> Finding:
    """Of this host against the store's, by which leases and rendezvous are judged."""
    store = Store(recipe.workdir)
    before = time.time()
    with _probe(store, b"dkd") as name:
        skew = store.fs.modified(store.path(name)).timestamp() - (before + time.time()) / 2
    if abs(skew) > _MOST_SKEW:
        fix = "keep the clocks together (chrony, ntp): leases of a capture are told by them"
        return Finding("clock", "warning", f"{skew:+.0f} s from {store.uri}'s", fix)
    return Finding("clock", "ok", f"within {max(1.0, abs(skew)):.0f} s of {store.uri}'s")


@contextmanager
def _probe(store: Store, data: bytes) -> Iterator[str]:
    """The name of a file of these bytes, there for the block alone."""
    name = f".doctor-{uuid.uuid4().hex}"
    store.put(name, data)
    try:
        yield name
    finally:
        store.delete(name)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
