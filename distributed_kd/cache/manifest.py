"""The cache's manifest, and the receipts from which it is committed.

A capture writes the manifest first, without an index (`index: null` means unfinished), then shards, each followed
by its receipt; the driver commits by writing the index and the manifest that names it. A receipt without its
shard cannot exist, since it is written after it; receipts carry the fingerprint, so another recipe's are ignored.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from distributed_kd.errors import RequestError
from distributed_kd.store.digest import sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import IndexReference, ShardEntry
from distributed_kd.store.manifest import Manifest

FOLDER = "cache"
RECEIPTS = "receipts"
TABLES_NAME = "tables.bin"
PARTS = ("levels", "ids", "tail", "input_ids", "container", "tables")


class CacheManifest(Manifest):
    format: Literal["dkd-cache"] = "dkd-cache"
    version: Literal[1] = 1
    codec: str
    teacher: str
    revision: str | None
    tokenizer_sha256: str
    vocabulary_size: int
    packing: Literal["concatenate", "isolate", "none"]
    method: Literal["top_k", "top_p", "sample", "full"]
    k: int
    temperatures: list[float]
    shards: int
    tables: IndexReference | None = None
    index: IndexReference | None
    bytes_by_part: dict[str, int] | None = None
    mean_kept_mass: float | None = None


def put_tables(store: Store, data: bytes) -> IndexReference:
    """Writes the cache's code tables; before its manifest, which names their digest, and so before any shard."""
    store.put(TABLES_NAME, data)
    return IndexReference(sha256(data), len(data))


def read_tables(store: Store, reference: IndexReference | None) -> bytes | None:
    """None for a cache without tables. Raises `RequestError` when they are missing or not those the manifest names."""
    if reference is None:
        return None
    where = f"{store.uri}/{TABLES_NAME}"
    try:
        data = store.read(TABLES_NAME)
    except FileNotFoundError as error:
        raise RequestError(f"{where} is missing, and no shard can be read without it; repair the cache") from error
    if len(data) != reference.bytes or sha256(data) != reference.sha256:
        raise RequestError(f"{where} is damaged: its digest is not the manifest's; repair the cache")
    return data


@dataclass(frozen=True)
class Receipt:
    """What a worker returns for a finished shard: its index entry, where its bytes went, and its mean kept mass."""

    fingerprint: str
    entry: ShardEntry
    bytes_by_part: dict[str, int]
    kept_mass: float  # summed over positions, at the first temperature

    def put(self, store: Store) -> None:
        store.put(_receipt_name(self.entry.shard), json.dumps(asdict(self)).encode())

    @staticmethod
    def read_all(store: Store, fingerprint: str) -> dict[int, Receipt]:
        """The receipts of this fingerprint by shard number."""
        receipts = {}
        for name in store.list(RECEIPTS):
            fields: dict[str, Any] = json.loads(store.read(f"{RECEIPTS}/{name}"))
            entry = ShardEntry(**fields.pop("entry"))
            receipt = Receipt(entry=entry, **fields)
            if receipt.fingerprint == fingerprint:
                receipts[entry.shard] = receipt
        return receipts


def totals(receipts: list[Receipt]) -> tuple[dict[str, int], float]:
    """(bytes by part, mean kept mass) over receipts."""
    parts = {part: sum(receipt.bytes_by_part[part] for receipt in receipts) for part in PARTS}
    positions = sum(receipt.entry.positions for receipt in receipts)
    return parts, sum(receipt.kept_mass for receipt in receipts) / max(1, positions)


def _receipt_name(shard: int) -> str:
    return f"{RECEIPTS}/{shard:08d}.json"
