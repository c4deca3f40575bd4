"""The receipts of an unfinished cache, up to millions: columns in memory, and few files in the store.

As objects a million receipts take 1.8 GB. As columns they take 82 bytes each, and one is made when it is asked for.

A worker puts each receipt as a file of its own, which needs no other worker and no lock. A million of such files are
slow to come back to: by one request after the other, of 20 ms each, in five hours; by 64 at once in five minutes of
waiting alone, after a listing that takes a gigabyte of memory. So when all shards of a group of 1000 are done, the
driver writes their receipts as one file, a line each, and then removes the single ones. Groups are fixed ranges of
shard numbers, so a group's file is the same bytes whoever writes it and however often. At each moment a receipt is in
one of the two or in both; a single file counts before a line, since only a repair writes it later. A group that a shard
is missing of stays single files, which are read 64 at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, MutableMapping

import numpy as np
import pyarrow as pa

from distributed_kd import console
from distributed_kd.cache.manifest import (
    MAXIMUM_RECEIPT_BYTES,
    PARTS,
    RECEIPTS,
    YOUNGER_PARTS,
    ErrorBound,
    Receipt,
    receipt_name,
)
from distributed_kd.errors import RequestError, StoreError
from distributed_kd.store.failures import reason_of
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, ShardIndex, check_entry
from distributed_kd.store.many import delete_many, read_many

GROUP = 1000
_IS_GROUP = re.compile(r"\d{8}-\d{8}\.jsonl")
_ENTRY_NUMBERS = ("rows", "positions", "bytes")
_EVERY_PART = PARTS + YOUNGER_PARTS
_AT_A_TIME = 4096  # receipts that a copy in another form is made of at once
_HEX = np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)  # a byte's two digits


class Receipts(MutableMapping[int, Receipt]):
    """Of one cache by shard number, rising: what `fingerprint` and number of `shards` its manifest has."""

    def __init__(self, fingerprint: str, shards: int) -> None:
        self.fingerprint = fingerprint
        self._is_there = np.zeros(shards, bool)
        self._is_single = np.zeros(shards, bool)  # has a file of its own
        # Full of zeros, where np.zeros would take the memory shard by shard: what does not fit is met at the start.
        numbers = len(_ENTRY_NUMBERS) + len(_EVERY_PART)
        self._numbers = np.full((numbers, shards), 0, np.uint32)  # widened when it has to be
        self._sha256 = np.full((shards, 32), 0, np.uint8)
        self._kept_mass = np.full(shards, 0.0)
        self._error_bounds: dict[int, ErrorBound] = {}  # only merges have any
        self._left_out: dict[int, list[int]] = {}
        self._count = np.zeros(-(-shards // GROUP), np.int64)  # by group
        self._to_fold: set[int] = set()
        self._is_due = False

    @classmethod
    def read_all(cls, store: Store, fingerprint: str, shards: int) -> Receipts:
        """Those that `store` holds of this fingerprint. Raises `RequestError` for a file that holds something else."""
        with console.waiting(f"reading the receipts of {store.uri}"):
            return cls._read(store, fingerprint, shards, strict=True)

    @classmethod
    def read_good(cls, store: Store, fingerprint: str, shards: int) -> Receipts:
        """As `read_all`, but what is no receipt counts as not there: its shard is done again."""
        with console.waiting(f"reading the receipts of {store.uri}"):
            return cls._read(store, fingerprint, shards, strict=False)

    @classmethod
    def _read(cls, store: Store, fingerprint: str, shards: int, strict: bool) -> Receipts:
        """Single files first: one that is folded and removed meanwhile is in a group's file by then."""
        receipts = cls(fingerprint, shards)

        def take(data: bytes, where: str, may_be: range, is_single: bool) -> None:
            try:
                receipt = Receipt.parse(data, where)
                if receipt.fingerprint != fingerprint:
                    return
                check_entry(receipt.entry, where)
                number = receipt.entry.shard
                if number not in may_be:
                    raise RequestError(f"{where} is the receipt of shard {number}; delete it")
            except RequestError:
                if strict:
                    raise
                return
            if is_single or not receipts._is_single[number]:
                receipts[number] = receipt
                receipts._is_single[number] = is_single

        names = [f"{RECEIPTS}/{name}" for name in store.list(RECEIPTS) if not _IS_GROUP.fullmatch(name)]
        for name, data in read_many(store, names, MAXIMUM_RECEIPT_BYTES):
            number = _number_of(name)
            own = range(number, number + 1) if name == receipt_name(number) and number < shards else range(0)
            take(data, f"{store.uri}/{name}", own, is_single=True)
        groups = [f"{RECEIPTS}/{name}" for name in store.list(RECEIPTS) if _IS_GROUP.fullmatch(name)]
        for name, data in read_many(store, groups, GROUP * MAXIMUM_RECEIPT_BYTES, at_once=16):
            group = _number_of(name) // GROUP
            own = _range_of(group) if name == _group_name(group) and (group + 1) * GROUP <= shards else range(0)
            lines = data.splitlines()
            if strict and len(lines) != GROUP:
                raise RequestError(f"{store.uri}/{name} has {len(lines)} of {GROUP} receipts; delete it")
            for place, line in enumerate(lines):
                take(line, f"{store.uri}/{name}, line {place + 1},", own, is_single=False)
        return receipts

    def fold(self, store: Store) -> None:
        """Where a group has become whole: writes it as one file, then removes its single ones.

        A store that fails is told of and asked again with the next group, since nothing depends on it.
        """
        if not self._is_due:
            return
        self._is_due = False
        for group in sorted(self._to_fold):
            numbers = _range_of(group)
            single = [receipt_name(n) for n in numbers if self._is_single[n]]
            try:
                if single:
                    store.put(_group_name(group), b"\n".join(self[n].to_bytes() for n in numbers))
                    delete_many(store, single)
            except StoreError as error:
                reason = reason_of(error.__cause__ or error)
                console.say(f"cache: the receipts of shards {numbers[0]} to {numbers[-1]} stay single files: {reason}")
                return
            self._is_single[numbers.start : numbers.stop] = False
            self._to_fold.remove(group)

    @property
    def missing(self) -> np.ndarray:
        """Numbers of the shards that have none, rising, int64."""
        return np.flatnonzero(~self._is_there)

    @property
    def entries(self) -> ShardIndex:
        there = np.flatnonzero(self._is_there)
        rows, positions, size = (column[there].astype(np.int64) for column in self._numbers[: len(_ENTRY_NUMBERS)])
        digits = np.empty((len(there), 32), np.uint16)
        for begin in range(0, len(there), _AT_A_TIME):  # numpy makes eight bytes of each to look it up
            own = slice(begin, begin + _AT_A_TIME)
            digits[own] = _HEX[self._sha256[there[own]]]
        offsets = np.arange(0, 64 * len(there) + 1, 64, dtype=np.int32)
        sha256 = pa.StringArray.from_buffers(len(there), pa.py_buffer(offsets), pa.py_buffer(digits))
        return ShardIndex(there, rows, positions, size, sha256)

    @property
    def bytes_by_part(self) -> dict[str, int]:
        parts = self._numbers[len(_ENTRY_NUMBERS) :]
        return _named([int(column[self._is_there].sum(dtype=np.int64)) for column in parts])

    @property
    def mean_kept_mass(self) -> float:
        """Over all positions; the same to the last bit whatever order the receipts came in."""
        masses = self._kept_mass[self._is_there]
        total = sum(
            mass for begin in range(0, len(masses), _AT_A_TIME) for mass in masses[begin:][:_AT_A_TIME].tolist()
        )
        positions = int(self._numbers[_ENTRY_NUMBERS.index("positions")][self._is_there].sum(dtype=np.int64))
        return total / max(1, positions)

    @property
    def left_out(self) -> list[int]:
        """Ids of the sequences without positions that `capture.leave_out` named, rising."""
        return sorted(number for own in self._left_out.values() for number in own)

    def __len__(self) -> int:
        return int(self._count.sum())

    def __contains__(self, shard: object) -> bool:
        return isinstance(shard, int) and 0 <= shard < len(self._is_there) and bool(self._is_there[shard])

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._is_there).tolist())

    def __getitem__(self, shard: int) -> Receipt:
        if shard not in self:
            raise KeyError(shard)
        rows, positions, size, *parts = self._numbers[:, shard].tolist()
        entry = ShardEntry(shard, rows, positions, size, self._sha256[shard].tobytes().hex())
        kept_mass = float(self._kept_mass[shard])
        bounds, left_out = self._error_bounds.get(shard), self._left_out.get(shard)
        return Receipt(self.fingerprint, entry, _named(parts), kept_mass, bounds, left_out)

    def __setitem__(self, shard: int, receipt: Receipt) -> None:
        """As a worker returns it, who has put it as a single file."""
        assert (receipt.entry.shard, receipt.fingerprint) == (shard, self.fingerprint)
        numbers = [getattr(receipt.entry, name) for name in _ENTRY_NUMBERS]
        numbers += [receipt.bytes_by_part.get(part, 0) for part in _EVERY_PART]
        if max(numbers) > np.iinfo(self._numbers.dtype).max:
            self._numbers = self._numbers.astype(np.int64)
        self._numbers[:, shard] = numbers
        self._sha256[shard] = np.frombuffer(bytes.fromhex(receipt.entry.sha256), np.uint8)
        self._kept_mass[shard] = receipt.kept_mass
        self._error_bounds.pop(shard, None)
        if receipt.error_bound is not None:
            self._error_bounds[shard] = receipt.error_bound
        self._left_out.pop(shard, None)
        if receipt.left_out is not None:
            self._left_out[shard] = receipt.left_out
        group = shard // GROUP
        self._count[group] += not self._is_there[shard]
        self._is_there[shard] = self._is_single[shard] = True
        if self._count[group] == GROUP:
            self._to_fold.add(group)
            self._is_due = True

    def __delitem__(self, shard: int) -> None:
        if shard not in self:
            raise KeyError(shard)
        self._is_there[shard] = self._is_single[shard] = False
        self._error_bounds.pop(shard, None)
        self._left_out.pop(shard, None)
        self._count[shard // GROUP] -= 1
        self._to_fold.discard(shard // GROUP)


def _named(parts: list[int]) -> dict[str, int]:
    """Bytes of `_EVERY_PART`: a part that most caches do not have is left out where there is none of it."""
    return {part: size for part, size in zip(_EVERY_PART, parts, strict=True) if size or part in PARTS}


def find(store: Store, fingerprint: str, shard: int) -> Receipt | None:
    """That of one shard, from its own file or its group's; None where there is none that is good."""
    single = Receipt.find(store, fingerprint, shard)
    if single is not None:
        return single
    try:
        lines = store.read(_group_name(shard // GROUP), at_most=GROUP * MAXIMUM_RECEIPT_BYTES).splitlines()
        receipt = Receipt.parse(lines[shard % GROUP], "")
        check_entry(receipt.entry, "")
    except (FileNotFoundError, IndexError, RequestError):
        return None
    return receipt if (receipt.fingerprint, receipt.entry.shard) == (fingerprint, shard) else None


def _range_of(group: int) -> range:
    return range(group * GROUP, (group + 1) * GROUP)


def _group_name(group: int) -> str:
    numbers = _range_of(group)
    return f"{RECEIPTS}/{numbers[0]:08d}-{numbers[-1]:08d}.jsonl"


def _number_of(name: str) -> int:
    """The shard number that a file's name begins with; 0 where it begins with none, which is then no receipt's name."""
    found = re.match(r"\d{1,8}", os.path.basename(name))
    return int(found[0]) if found else 0
