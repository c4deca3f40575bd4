"""manifest.json: what an artifact is and what it was made from.

Every artifact's manifest has `format`, `version`, `made_from` and its `fingerprint`; each kind adds its own fields
by subclassing. A manifest is untrusted input: validated, bounded in size, and refused by name when it does not fit.
Times and machines are kept apart, in `run.json`, since a manifest must not change when the work is done again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from distributed_kd.errors import RequestError
from distributed_kd.store.digest import differences, fingerprint, seal, unseal
from distributed_kd.store.filesystem import Store

if TYPE_CHECKING:
    from typing_extensions import Self  # Python 3.10's typing has none

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
        store.put(MANIFEST_NAME, json.dumps(seal(self.model_dump(mode="json")), indent=1).encode())

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
            raw = json.loads(data)
            if not isinstance(raw, dict):
                raise ValueError("it is not a JSON object")
            said = (raw.get("format"), raw.get("version"))
            if said != cls.kind():
                expected_format, expected_version = cls.kind()
                raise RequestError(
                    f"{where} is {json.dumps(said[0])[:60]} version {json.dumps(said[1])[:20]}; "
                    f"this reads {expected_format} version {expected_version}"
                )
            is_whole = unseal(raw)
            found = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            line = " ".join(f"{key} {first['msg']}".split())[:300]
            raise RequestError(f"{where} is not a manifest this version reads: {line}") from error
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RequestError(f"{where} is not a manifest this version reads: {reason}") from error
        if not is_whole:
            raise RequestError(f"{where} is damaged: its sha256 is not that of its other fields")
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
    """How an artifact was made: wall seconds, the peak resident memory of the process that did the work, and the sum
    over devices (ranks of a training, a replica's where it has a place) of the seconds for which they were held."""

    seconds: float
    peak_memory_bytes: int
    device_seconds: float = 0.0

    def put(self, store: Store) -> None:
        store.put(RUN_NAME, json.dumps(self.__dict__).encode())

    @staticmethod
    def read(store: Store) -> Run | None:
        try:
            run = _RUN.validate_json(store.read(RUN_NAME, at_most=MAXIMUM_BYTES))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise RequestError(f"{store.uri}/{RUN_NAME} is damaged; it only tells how long the work took") from error
        return run


_RUN = TypeAdapter(Run)


def peak_memory_bytes(with_children: bool = False) -> int:
    """Peak resident memory of this process, in bytes; or of the largest one that it started and that has ended."""
    import resource

    whose = [resource.RUSAGE_SELF] + ([resource.RUSAGE_CHILDREN] if with_children else [])
    return max(resource.getrusage(who).ru_maxrss for who in whose) * 1024
