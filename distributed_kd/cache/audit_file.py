"""`audit.json` in a cache's folder: what `dkd audit` found the last time, for the report to show."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ValidationError

from distributed_kd import console
from distributed_kd.errors import StoreError
from distributed_kd.store.filesystem import Store

NAME = "audit.json"


class Alternative(BaseModel):
    """One choice of how much to keep; `k`, `p` or `draws` says which, by the method."""

    k: int | None = None
    p: float | None = None
    draws: int | None = None
    present: bool
    bytes_per_position: float
    temperatures: dict[str, dict[str, Any]]


class Audit(BaseModel):
    """`dkd audit --json`, and the cache that it is of."""

    fingerprint: str
    method: str
    positions: int
    sequences: int
    bytes_per_position: float
    temperatures: dict[str, dict[str, Any]]
    alternatives: list[Alternative]


def keep_audit(uri: str, facts: dict[str, Any]) -> None:
    """Beside the shards. A cache that cannot be written to is no error: then it is only said."""
    store = Store(uri)
    try:
        store.put(NAME, json.dumps(facts, indent=1).encode())
    except StoreError as error:
        console.say(f"audit: not kept for the report: {error}")


def read_audit(uri: str, fingerprint: str) -> dict[str, Any] | None:
    """The audit of the cache of that fingerprint; None where there is none, or one that cannot be read."""
    store = Store(uri)
    try:
        found = Audit.model_validate_json(store.read(NAME))
    except FileNotFoundError:
        return None
    except ValidationError:
        console.say(f"{store.uri}/{NAME} is damaged, and left out of the report; run `dkd audit` again")
        return None
    return found.model_dump(exclude_none=True) if found.fingerprint == fingerprint else None
