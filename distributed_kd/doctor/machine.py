"""What every recipe needs of a machine: an interpreter, torch, ranks that meet, Ray, disk and shared memory."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec

from distributed_kd.doctor.finding import Finding
from distributed_kd.launch import torchrun
from distributed_kd.launch.processors import set_processors
from distributed_kd.models.locate import cache_folder
from distributed_kd.recipe import Recipe

LEAST_PYTHON = (3, 10)  # as pyproject.toml's requires-python
_RANKS_SECONDS = 300  # a first start compiles for a minute or two
_RAY_SECONDS = 60
_LEAST_DISK = 10 << 30  # bytes
_LEAST_SHARED = 1 << 30
AGAIN = "install what ranks are started with again: pip install torch deepspeed ninja"
_NETWORK = (
    "set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME on GPUs) to the network between the ranks; `ip -br link` has them"
)
COMPILER = "install a C++ compiler and ninja (apt-get install g++ ninja-build)"
# Of Ray's `check_version_info`: the cluster's versions, then this process's.
_MISMATCH = re.compile(
    r"Version mismatch: The cluster was started with:\s+Ray: (\S+)\s+Python: (\S+)"
    r"\s+This process .*?was started with:\s+Ray: (\S+)\s+Python: (\S+)",
    re.DOTALL,
)
# What a rank that cannot start says -> what helps; the first that fits.
_CURES = {
    r"No module named": AGAIN,
    r"building extension|ninja|C\+\+|cpp_extension": f"{COMPILER}, and remove ~/.cache/torch_extensions",
    r"out of memory": "end what else holds this GPU's memory (nvidia-smi names it), or set trainer.processes lower",
    r"": _NETWORK,
}


def python() -> Finding:
    found = f"{platform.python_version()} on {platform.machine()}, {len(os.sched_getaffinity(0))} processors"
    if sys.version_info < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return Finding("python", "missing", found, f"make the environment anew with Python {least} or later")
    return Finding("python", "ok", found)


def torch_build() -> Finding:
    import torch

    count = torch.cuda.device_count()
    devices = f"{count} x {torch.cuda.get_device_name()}" if count else "no GPU"
    found = f"{torch.__version__}, {devices}"
    if not count and shutil.which("nvidia-smi"):
        return Finding("torch", "missing", found, "this torch does not see the GPU: install its CUDA build")
    return Finding("torch", "ok", found)


def ranks(recipe: Recipe | None) -> Finding:
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
        return Finding("ranks", "missing", f"{count} ranks did not come together in {_RANKS_SECONDS} s", _NETWORK)
    backend = "NCCL" if torch.cuda.is_available() else "gloo"
    if done.returncode == 0:
        return Finding("ranks", "ok", f"{count} over {backend}, {time.monotonic() - begun:.0f} s")
    last = next((line for line in reversed(done.stderr.splitlines()) if "Error" in line), "no reason was given")
    cure = next(cure for sign, cure in _CURES.items() if re.search(sign, last, re.IGNORECASE))
    fix = COMPILER if shutil.which("g++") is None else cure
    return Finding("ranks", "missing", f"{count} over {backend}: {last.strip()[:200]}", fix)


def ray_cluster(recipe: Recipe | None) -> Finding:
    """The cluster that the recipe or RAY_ADDRESS names; without one a local one is started when it is needed."""
    import ray

    address = (recipe.capture.address if recipe is not None else None) or os.environ.get("RAY_ADDRESS")
    wants_gpu = recipe is not None and bool(recipe.teachers) and recipe.capture.device == "gpu"
    if address is None:
        import torch

        if wants_gpu and not torch.cuda.device_count():
            fix = "set capture.device=auto, or name a cluster that has GPUs in capture.address"
            return Finding("ray", "missing", "capture.device is gpu, and this machine has none", fix)
        return _importing(f"{ray.__version__}; no cluster is named, so a local one is started when needed")
    script = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); "
    script += "print(len(ray.nodes()), ray.cluster_resources().get('GPU', 0))"
    fix = f"start a head there, open its port to this host, and have ray {ray.__version__} and this Python on both"
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, address], capture_output=True, text=True, timeout=_RAY_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Finding("ray", "missing", f"no answer from {address} in {_RAY_SECONDS} s", fix)
    mismatch = _MISMATCH.search(done.stderr) if done.returncode else None
    if mismatch is not None:
        ray_there, python_there, ray_here, python_here = mismatch.groups()
        there, here = f"Ray {ray_there} and Python {python_there}", f"Ray {ray_here} and Python {python_here}"
        fix = f"pip install 'ray[default]=={ray_there}' here, in an environment of Python {python_there}, or start the "
        fix += f"cluster again with {here} on every node"
        return Finding("ray", "missing", f"{address} has {there}, this host has {here}", fix)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1].strip()
        return Finding("ray", "missing", f"{address}: {last[:200]}", fix)
    nodes, gpus = done.stdout.split()[-2:]
    found = f"{ray.__version__}, {address} answers with {nodes} nodes"
    if wants_gpu and not float(gpus):
        fix = "start nodes that have some, or set capture.device=auto"
        return Finding("ray", "warning", f"{found} and no GPU yet, which capture.device gpu waits for", fix)
    return _importing(found)


def _importing(found: str) -> Finding:
    """Of a Ray that is there: whether its processes are slow to start here."""
    if find_spec("rfc3987_syntax") is None:
        return Finding("ray", "ok", found)
    found += "; rfc3987-syntax makes each of its processes a second or more slower to start"
    return Finding("ray", "warning", found, "pip uninstall rfc3987-syntax, which jsonschema does without")


def disk() -> Finding:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < _LEAST_DISK:
        fix = "make room, or set DKD_CACHE to a larger disk: models and shards are kept there"
        return Finding("disk", "warning", f"{_gib(free)} free for models and shards", fix)
    return Finding("disk", "ok", f"{_gib(free)} free for models and shards")


def shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free
    if free < _LEAST_SHARED:
        fix = "give the container more (docker run --shm-size=8g, an emptyDir of medium Memory)"
        return Finding("shared memory", "warning", f"{_gib(free)} free in /dev/shm", fix)
    return Finding("shared memory", "ok", f"{_gib(free)} free in /dev/shm")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
