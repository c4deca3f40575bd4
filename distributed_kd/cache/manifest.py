"""The cache's manifest, and the receipt of a shard; it is committed from all of them (`receipts.py`).

A capture writes the manifest first, without an index (`index: null` means unfinished), then shards, each followed
by its receipt; the driver commits by writing the index and the manifest that names it. A receipt without its
shard cannot exist, since it is written after it; receipts carry the fingerprint, so another recipe's are ignored.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, TypeAdapter, model_serializer

from distributed_kd.cache.hidden import HiddenStates
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Recipe
from distributed_kd.store.digest import seal, sha256, unseal
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import (
    LIMITS,
    MAXIMUM_SHARDS,
    SHARDS,
    IndexReference,
    ShardEntry,
    ShardIndex,
    check_entry,
    read_index,
    read_known,
)
from distributed_kd.store.manifest import Manifest

RECEIPTS = "receipts"
TABLES_NAME = "tables.bin"
MAXIMUM_TABLES_BYTES = 1 << 28
MAXIMUM_RECEIPT_BYTES = 1 << 16
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PARTS = ("levels", "ids", "tail", "input_ids", "container", "tables")
YOUNGER_PARTS = ("hidden",)  # of caches that have them, so that others are the bytes that they were


@dataclass(frozen=True)
class ErrorBound:
    """How far a merge can be from the mean of the whole distributions, in L1 over the ids that it keeps.

    One number a temperature: the mean over positions, and the largest. Formula and proof: `ensemble.py`.
    """

    mean: list[float]
    maximum: list[float]


class Merge(BaseModel):
    """What `dkd merge` made a cache of. `error_bound` is None while it is unfinished, and where none is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: Literal["arithmetic", "geometric"]
    weights: list[float]
    members: list[str]  # fingerprints, in the order of the weights
    error_bound: ErrorBound | None = None


_YOUNGER_FIELDS = ("hidden", "left_out")


class CacheManifest(Manifest):
    format: Literal["dkd-cache"] = "dkd-cache"
    version: Literal[1] = 1
    codec: Annotated[str, Field(max_length=64)]
    teacher: str
    revision: str | None
    tokenizer_sha256: str
    vocabulary_size: Annotated[int, Field(ge=1, le=1 << 31)]
    packing: Literal["concatenate", "isolate", "none"]
    method: Literal["top_k", "top_p", "sample", "full"]
    k: Annotated[int, Field(ge=1, le=1 << 31)]
    temperatures: Annotated[list[Temperature], Field(min_length=1, max_length=64)]
    shards: Annotated[int, Field(ge=0, le=MAXIMUM_SHARDS)]
    tables: IndexReference | None = None
    index: IndexReference | None
    bytes_by_part: dict[str, int] | None = None
    mean_kept_mass: float | None = None
    merge: Merge | None = None
    hidden: HiddenStates | None = None
    left_out: list[int] | None = None  # sequences none of whose positions is scored, by `capture.leave_out`

    @model_serializer(mode="wrap")
    def _as_before_without_younger_fields(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that a cache without them is the bytes that it was, and one with them is refused by who cannot know."""
        fields: dict[str, Any] = written(self)
        return {key: value for key, value in fields.items() if key not in _YOUNGER_FIELDS or value is not None}

    @property
    def imported(self) -> dict[str, Any] | None:
        """What `dkd import` made it of; None where it did not."""
        said = self.made_from.get("imported")
        return said if isinstance(said, dict) else None

    @property
    def teacher_identity(self) -> dict[str, str]:
        """Of the files of the teacher it was captured from, which may be gone. Raises `RequestError` if not said."""
        if self.merge is not None:
            raise RequestError(f"a merged cache is of several teachers ({self.teacher}), not of one")
        said: Any = self.made_from.get("teacher")
        try:
            return {key: said[key] for key in ("config_sha256", "weights_sha256")}
        except (KeyError, TypeError) as error:
            raise RequestError(
                "the cache's manifest does not say which teacher's files it was made from; make the cache again"
            ) from error


def store_of(recipe: Recipe) -> Store:
    """Where the recipe's cache is."""
    return Store(recipe.workdir).child(recipe.capture.folder)


def read_entries(store: Store, manifest: CacheManifest) -> ShardIndex:
    """The index of a finished cache: the entry of shard n in place n. Raises `RequestError` when it is not good."""
    assert manifest.index is not None
    entries = read_index(store, manifest.index)
    if len(entries) != manifest.shards or not entries.is_numbered_through:
        raise RequestError(
            f"{store.uri}: the index lists {len(entries)} shards, the manifest has {manifest.shards}; repair the cache"
        )
    return entries


def refuse_not_captured(manifest: CacheManifest, store: Store, instead: str) -> None:
    """Raises `RequestError` for a cache that no teacher can compute here: one of `dkd merge` or `dkd import`."""
    if manifest.merge is not None:
        raise RequestError(f"{store.uri} is a merge of {len(manifest.merge.members)} caches; {instead}")
    if manifest.imported is not None:
        raise RequestError(f"{store.uri} was imported from {manifest.imported.get('format')} lists; {instead}")


# What a shard's bytes depend on; how many replicas there are, and where, is not among it.
_IN_FINGERPRINT = {"batch_tokens", "head_chunk", "threads", "codec", "table_positions"}


def made_from_of(recipe: Recipe, sequences: str, teacher: dict[str, str]) -> dict[str, Any]:
    """What a cache of this recipe is made from: the sequences' fingerprint, the identity of the teacher's files."""
    spec = recipe.teachers[0]
    return {
        "sequences": sequences,
        "teacher": {"model": spec.model, "revision": spec.revision, "dtype": spec.dtype, **teacher},
        "targets": recipe.targets.made_from(),
        "capture": recipe.capture.model_dump(mode="json", include=_IN_FINGERPRINT),
    }


def imported_from_of(recipe: Recipe, sequences: str, said: dict[str, Any]) -> dict[str, Any]:
    """What an imported cache of this recipe is made from. said: `format`, `sha256` of the source, `normalised`."""
    spec = recipe.teachers[0]
    return {
        "sequences": sequences,
        "teacher": {"model": spec.model, "revision": spec.revision},
        "targets": recipe.targets.made_from(),
        "capture": recipe.capture.model_dump(mode="json", include={"codec", "table_positions"}),
        "imported": said,
    }


def remove_leftovers(store: Store) -> None:
    """Removes what killed writers of a cache's files left; called where a cache is finished or repaired."""
    store.remove_leftovers("", SHARDS, RECEIPTS)


def put_tables(store: Store, data: bytes) -> IndexReference:
    """Writes the cache's code tables; before its manifest, which names their digest, and so before any shard."""
    store.put(TABLES_NAME, data)
    return IndexReference(sha256(data), len(data))


def read_tables(store: Store, reference: IndexReference | None) -> bytes | None:
    """None for a cache without tables. Raises `RequestError` when they are missing or not those the manifest names."""
    if reference is None:
        return None
    if not 0 <= reference.bytes <= MAXIMUM_TABLES_BYTES:
        raise RequestError(f"{store.uri}: the manifest says its code tables have {reference.bytes} bytes; they cannot")
    return read_known(store, TABLES_NAME, reference, "no shard can be read without it: repair the cache")


@dataclass(frozen=True)
class Receipt:
    """What a worker returns for a finished shard: its index entry, where its bytes went, and its mean kept mass.

    `error_bound` is that of a merge over the shard's positions, where it has one; `left_out` are the ids of its rows
    without positions that `capture.leave_out` named, where it named any.
    """

    fingerprint: str
    entry: ShardEntry
    bytes_by_part: dict[str, int]
    kept_mass: float  # summed over positions, at the first temperature
    error_bound: ErrorBound | None = None
    left_out: list[int] | None = None

    def put(self, store: Store) -> None:
        store.put(receipt_name(self.entry.shard), self.to_bytes())

    def to_bytes(self) -> bytes:
        """One line, without its end."""
        fields = asdict(self)
        if self.left_out is None:  # younger than other receipts, which stay the bytes that they were
            del fields["left_out"]
        return json.dumps(seal(fields)).encode()

    @staticmethod
    def find(store: Store, fingerprint: str, shard: int) -> Receipt | None:
        """The receipt of one shard; None where there is none, or a file that is no receipt of it."""
        name = receipt_name(shard)
        try:
            receipt = Receipt.parse(store.read(name, at_most=MAXIMUM_RECEIPT_BYTES), f"{store.uri}/{name}")
            check_entry(receipt.entry, name)
        except (FileNotFoundError, RequestError):
            return None
        return receipt if (receipt.fingerprint, receipt.entry.shard) == (fingerprint, shard) else None

    @staticmethod
    def parse(data: bytes, where: str) -> Receipt:
        """The inverse of `to_bytes`, its entry yet to be checked. Raises `RequestError`, naming `where`."""
        try:
            raw = json.loads(data)
            known = Receipt.__dataclass_fields__.keys()
            is_whole = isinstance(raw, dict) and unseal(raw) and raw.keys() | {"error_bound", "left_out"} == known
            receipt = _RECEIPT.validate_python(raw)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where} is not a receipt; delete it, and its shard is done again") from error
        parts = receipt.bytes_by_part
        are_known = parts.keys() - set(YOUNGER_PARTS) == set(PARTS)
        are_sizes = are_known and all(0 <= size <= LIMITS["bytes"] for size in parts.values())
        if not is_whole or not are_sizes or not math.isfinite(receipt.kept_mass):
            raise RequestError(f"{where} is not a receipt, or damaged; delete it, and its shard is done again")
        return receipt


_RECEIPT = TypeAdapter(Receipt)


def receipt_name(shard: int) -> str:
    return f"{RECEIPTS}/{shard:08d}.json"
