"""What this machine, or the cluster and store of a recipe, lacks: each with its fix.

`machine.py` looks at what every recipe needs, `operators.py` at what DeepSpeed compiles, `named.py` at what a recipe
names, `where.py` at the store it writes to. docs/deploying.md has the table of all checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from distributed_kd import console
from distributed_kd.doctor import machine, named, operators, where
from distributed_kd.doctor.finding import Finding
from distributed_kd.errors import DkdError
from distributed_kd.recipe import Recipe


def examine(recipe: Recipe | None) -> Iterator[Finding]:
    """Every check in turn. A check that fails in a way of its own is a finding too, with the check's usual fix."""
    checks: list[tuple[str, Callable[[], Finding], str]] = [
        ("python", machine.python, "run it on Linux, with a Python that `pip install distributed-kd` takes"),
        ("torch", machine.torch_build, "install torch again, its CUDA build where there is a GPU: pip install torch"),
        ("ranks", lambda: machine.ranks(recipe), machine.AGAIN),
        ("operators", lambda: operators.operators(recipe), machine.AGAIN),
        ("ray", lambda: machine.ray_cluster(recipe), "install Ray again: pip install 'ray[default]'"),
        ("disk", machine.disk, "set DKD_CACHE to a folder that this user may write to"),
        ("shared memory", machine.shared_memory, "mount a memory file system at /dev/shm"),
    ]
    if recipe is not None:
        opened = "and give the environment what opens it (for s3:// AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret)"
        checks += [
            ("packages", lambda: named.packages(recipe), "name in `corpus.source` a built-in source that there is"),
            ("models", lambda: named.models(recipe), "name in `teachers` and `student` models that transformers opens"),
            ("corpus", lambda: named.corpora(recipe), f"name what is there in `corpus.source`, {opened}"),
            ("deepspeed", lambda: named.deepspeed(recipe), "name a DeepSpeed file that is there, or leave the key out"),
            ("hosts", lambda: named.hosts(recipe), "write `HOST slots=RANKS` for each host into `trainer.hostfile`"),
            ("store", lambda: where.store(recipe), f"choose a `workdir` that this user may write to, {opened}"),
            ("room", lambda: where.room(recipe), "delete `sequences` in the workdir and `dkd prepare` them again"),
            ("clock", lambda: where.clock(recipe), f"choose a `workdir` that this user may write to, {opened}"),
        ]
    for name, check, fix in checks:
        try:
            with console.waiting(f"doctor: {name}"):
                finding = check()
        except DkdError as error:
            finding = Finding(name, "missing", str(error), fix)
        except Exception as error:  # what is wrong with a machine has many names
            finding = Finding(name, "missing", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", fix)
        yield finding


def facts(findings: list[Finding]) -> dict[str, Any]:
    return {"ok": all(one.state != "missing" for one in findings), "checks": [asdict(one) for one in findings]}
