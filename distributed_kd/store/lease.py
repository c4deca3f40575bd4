"""Who works on a folder now, so that a second job does not do the same work again.

A lease is a small file that its holder renews; it expires by itself when that stops. It saves work and nothing else:
two holders, which a store without locks cannot exclude in the second in which both begin, write the same bytes to the
same names. The lease of a process of this host that is gone has ended, whatever it says.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distributed_kd.errors import RequestError, StoreError
from distributed_kd.store.filesystem import Store

LEASE_NAME = "lease.json"
SECONDS = 90.0
_RENEWALS = 4  # in the time after which it expires
_RETURN_SECONDS = 5.0
_MAXIMUM_BYTES = 4096


@contextmanager
def lease(store: Store, what: str, seconds: float = SECONDS) -> Iterator[None]:
    """Holds the lease on `store` while the block runs. Raises `RequestError` while another holds it."""
    holder = {"host": socket.gethostname(), "process": os.getpid(), "started": _started(os.getpid()), "id": _id()}
    other = _held_by_another(store, holder)
    if other is not None:
        left = max(0.0, other["until"] - time.time())
        raise RequestError(
            f"{store.uri} is in work by process {other['process']} on {other['host']}; wait for it or stop it before "
            f"another `{what}`: its lease expires in {left:.0f} s, unless it is renewed"
        )
    ended = threading.Event()

    def hold() -> None:
        while not ended.wait(seconds / _RENEWALS):
            with suppress(StoreError):  # a store that fails now and then: the next renewal is soon
                _put(store, holder, seconds)
        with suppress(StoreError):  # it expires by itself
            if (_read(store) or {}).get("id") == holder["id"]:
                store.delete(LEASE_NAME)

    # Given back from there, too: who is told to stop cannot wait until a store that has gone answers.
    thread = threading.Thread(target=hold, name="lease", daemon=True)
    thread.start()
    try:  # from before it is written on: who is told to stop may be told in between
        _put(store, holder, seconds)
        yield
    finally:
        ended.set()
        thread.join(_RETURN_SECONDS)


def is_held(store: Store) -> bool:
    """Whether anyone holds the lease on `store` now."""
    return _held_by_another(store, {"host": socket.gethostname()}) is not None


def _put(store: Store, holder: dict[str, Any], seconds: float) -> None:
    store.put(LEASE_NAME, json.dumps(holder | {"until": time.time() + seconds}).encode())


def _read(store: Store) -> dict[str, Any] | None:
    """What the file says; None where there is none, or none that says it."""
    try:
        found = json.loads(store.read(LEASE_NAME, at_most=_MAXIMUM_BYTES))
    except (FileNotFoundError, ValueError):
        return None
    keys = {"host": str, "process": int, "started": float, "id": str, "until": float}
    is_lease = isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in keys.items())
    return found if is_lease else None


def _held_by_another(store: Store, holder: dict[str, Any]) -> dict[str, Any] | None:
    found = _read(store)
    if found is None or found["until"] < time.time():
        return None
    if found["host"] == holder["host"] and _started(found["process"]) != found["started"]:
        return None
    return found


def _started(process: int) -> float:
    """When a process of this host began, in ticks since the host did; -1 where there is none of that number."""
    try:
        with open(f"/proc/{process}/stat") as stat:
            return float(stat.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return -1.0


def _id() -> str:
    return uuid.uuid4().hex
