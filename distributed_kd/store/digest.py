"""Digests and fingerprints.

A digest is the sha256 of bytes. A fingerprint is the digest of what an artifact was made from, as canonical
JSON: the same inputs give the same fingerprint on every machine.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces; floats must be finite."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def seal(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields and their own digest, `sha256`: for a file that no other holds the digest of."""
    return fields | {"sha256": sha256(canonical_json(fields))}


def unseal(fields: dict[str, Any]) -> bool:
    """Takes `sha256` out; whether it was that of the rest, or not there. Raises `ValueError` for no canonical JSON."""
    found = fields.pop("sha256", None)
    digest = sha256(canonical_json(fields))  # also where there is none to compare: what has no digest cannot be put
    return found is None or found == digest


def fingerprint(made_from: dict[str, Any]) -> str:
    return sha256(canonical_json(made_from))


def differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """Where two nested values differ, as `key.path: FOUND, not WANTED` lines."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        lines = []
        for key in sorted(found.keys() | wanted.keys()):
            lines += differences(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
        return lines
    return [] if found == wanted else [f"{path}: {_short(found)}, not {_short(wanted)}"]


def _short(value: Any) -> str:
    text = "nothing" if value is None else canonical_json(value).decode()
    return text if len(text) <= 60 else f"{text[:40]}…{text[-16:]}"
