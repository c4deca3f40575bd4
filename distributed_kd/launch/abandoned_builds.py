"""Locks of the extensions that DeepSpeed has torch compile when ranks start.

torch waits for such a file as long as it is there, and a start that was killed while it compiled leaves it there: every
later start on that host would wait for ever, without a word. Whoever compiles has the file open.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

# Another host of a shared home may be compiling, and what it has open is not seen here. It takes a minute or two.
_PATIENCE = 300.0


def remove_abandoned_locks(root: Path | None = None, patience: float = _PATIENCE) -> None:
    """Removes those that no process of this host has open and that are older than `patience`, which is waited for.

    root: the folder of torch's extensions. Where a process's open files cannot be listed (not Linux), nothing is done.
    """
    root = _extensions() if root is None else root
    if not Path("/proc/self/fd").is_dir() or not root.is_dir():
        return
    with FileLock(root / ".dkd-locks"):  # of all ranks one looks and removes, so none removes a lock made since
        while waiting := _left_alone([*root.glob("*/lock"), *root.glob("*/*/lock")]):
            for lock in waiting:
                with suppress(FileNotFoundError):
                    if time.time() - lock.stat().st_mtime > patience:
                        print(
                            f"removing {lock}, which a start that was killed left behind", file=sys.stderr, flush=True
                        )
                        lock.unlink()
            time.sleep(min(1.0, patience))


def _left_alone(locks: list[Path]) -> list[Path]:
    """Those that no process of this host has open."""
    if not locks:
        return []
    held = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it has ended, or is another user's
            held.add(os.readlink(link))
    return [lock for lock in locks if str(lock.resolve()) not in held and lock.exists()]


def _extensions() -> Path:
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
