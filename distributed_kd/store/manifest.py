"""manifest.json: what an artifact is and what it was made from.

Every artifact's manifest has `format`, `version`, `made_from` and its `fingerprint`; each kind adds its own fields
by subclassing. A manifest is untrusted input: validated, bounded in size, and refused by name when it does not fit.
Times and machines are kept apart, in `run.json`, since a manifest must not change when the work is done again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from distributed_kd.errors import RequestError
from distributed_kd.store.digest import differences, fingerprint
from distributed_kd.store.filesystem import Store

MANIFEST_NAME = "manifest.json"
RUN_NAME = "run.json"
MAXIMUM_BYTES = 16 << 20


class Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    version: int
    made_from: dict[str, Any]
    fingerprint: str

    @model_validator(mode="after")
    def _fingerprint_is_right(self) -> Self:
        if self.fingerprint != fingerprint(self.made_from):
            raise ValueError("the fingerprint is not that of made_from")
        return self

    def put(self, store: Store) -> None:
        store.put(MANIFEST_NAME, json.dumps(self.model_dump(mode="json"), indent=1).encode())

    @classmethod
    def read(cls, store: Store) -> Self | None:
        """The manifest in `store`; None when there is none. Raises `RequestError` when it is not a good one."""
        where = f"{store.uri}/{MANIFEST_NAME}"
        try:
            data = store.read(MANIFEST_NAME, at_most=MAXIMUM_BYTES + 1)
        except FileNotFoundError:
            return None
        except IsADirectoryError as error:
            raise RequestError(f"{where} is a folder, not a file") from error
        except NotADirectoryError as error:
            raise RequestError(f"{where}: {store.uri} is not a folder; choose another `workdir`") from error
        if len(data) > MAXIMUM_BYTES:
            raise RequestError(f"{where} has more than {MAXIMUM_BYTES} bytes; no manifest is so large")
        try:
            found = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            line = " ".join(f"{key} {first['msg']}".split())[:300]
            raise RequestError(f"{where} is not a manifest this version reads: {line}") from error
        except (RecursionError, UnicodeError) as error:  # of the fingerprint: what canonical JSON cannot hold
            raise RequestError(f"{where} is not a manifest this version reads: {type(error).__name__}") from error
        expected_format, expected_version = cls.kind()
        if (found.format, found.version) != (expected_format, expected_version):
            raise RequestError(
                f"{where} is {found.format} version {found.version}; this reads {expected_format} version "
                f"{expected_version}"
            )
        return found

    @classmethod
    def kind(cls) -> tuple[str, int]:
        """(format, version) that this class writes and reads: the defaults of its fields."""
        return cls.model_fields["format"].default, cls.model_fields["version"].default


def refuse_other(found: Manifest, made_from: dict[str, Any], store: Store, what: str) -> None:
    """Raises `RequestError` listing what differs when `found` was made from something else."""
    if found.fingerprint != fingerprint(made_from):
        lines = "; ".join(differences(found.made_from, made_from)[:6])
        raise RequestError(
            f"{store.uri} holds {what} made from something else ({lines}); "
            f"choose another `workdir`, or delete that folder to make it again"
        )


@dataclass(frozen=True)
class Run:
    """How an artifact was made: wall seconds, and the peak resident memory of the process that did the work."""

    seconds: float
    peak_memory_bytes: int

    def put(self, store: Store) -> None:
        store.put(RUN_NAME, json.dumps(self.__dict__).encode())

    @staticmethod
    def read(store: Store) -> Run | None:
        try:
            return Run(**json.loads(store.read(RUN_NAME)))
        except FileNotFoundError:
            return None


def peak_memory_bytes() -> int:
    """Peak resident memory of this process, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
