"""Code tables: what is derived from them, and every limit that they are held to, to the last number."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import numpy as np
import pytest
import zstandard

from distributed_kd.cache.codecs import compact, levels, tables
from tests.cache.fuzz.decoders import good_targets, known_tables

MANY = np.iinfo("<i4").max
# sha256 of the arrays that the kernels take, by the number of the known tables.
DERIVED = {0: "83363653a8e2033a", 1: "f185b7682e94a4ae", 2: "a7de8ee4c4d7273a"}


# And where counts are as uneven as in a large sample, so that some ids take the escape.
DERIVED_STEEP = {0: "e33c4540b0d476b7", 1: "c6f6bbe6d63f48c4", 2: "b4208239fe6361d1"}


def derived(code: tables.Tables) -> str:
    found = hashlib.sha256()
    values = (*vars(code.quantiser).values(), *vars(code).values(), *code.coder)
    for array in (value for value in values if isinstance(value, np.ndarray)):
        found.update(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_follows_from_tables_is_what_it_always_was(number: int) -> None:
    code = tables.parse(known_tables()[number])
    assert derived(code) == DERIVED[number]
    header, arrays = tables.unpack(known_tables()[number])
    steep = 1 + 10**6 // (1 + np.arange(len(arrays["type_counts"]), dtype="<i4") * 37 % 101) ** 4
    assert derived(tables.parse(packed(header, arrays | {"type_counts": steep}))) == DERIVED_STEEP[number]
    assert (code.width, code.vocabulary_size, list(code.temperatures)) == (
        header["width"], header["vocabulary_size"], header["temperatures"],
    )  # fmt: skip


def test_what_follows_from_ids_seen_once_and_from_none_is_what_it_always_was() -> None:
    """The last of which leaves the escape all slots but one."""
    header, arrays = tables.unpack(known_tables()[1])
    once = packed(header, arrays | {"type_counts": np.ones_like(arrays["type_counts"])})
    assert derived(tables.parse(once)) == "15af426ea18c544b"
    targets, tokens = good_targets(1, 3)
    assert derived(tables.parse(compact.build_tables(targets[:0], tokens[:0], 300))) == "97e5f67da395e978"


def packed(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    return tables.pack(header, {name: np.ascontiguousarray(array) for name, array in arrays.items()})


def first(array: np.ndarray, value: int) -> np.ndarray:
    changed = array.astype("<i4")
    changed.flat[0] = value
    return changed


def last(array: np.ndarray, value: int) -> np.ndarray:
    changed = array.astype("<i4")
    changed.flat[-1] = value
    return changed


FIELDS = [
    # which tables, field, values that are good, values that are not; V is 300, L the highest level
    (0, "width", [1, 300], [0, 301, -1]),
    (0, "vocabulary_size", [300, 1 << 20], [299, (1 << 20) + 1, 0]),
    (0, "reference", [0, 1], [-1, 2]),
    (0, "draws", [0, 1, "L"], [-1, "L+1"]),
    (0, "dense_top", [0, 31], [-1, 32]),
    (2, "dense_top", [0, "L"], ["L+1"]),
    (0, "temperatures", [[0.5, 2.0]], [[], [1.0], [1.0] * 3, [1.0] * 65]),
]


@pytest.mark.parametrize(("number", "field", "good", "bad"), FIELDS)
def test_a_field_is_within_its_limits(number: int, field: str, good: list[Any], bad: list[Any]) -> None:
    header, arrays = tables.unpack(known_tables()[number])
    highest = len(arrays["values"]) - 1

    def parse(value: Any) -> None:
        number = {"L": highest, "L+1": highest + 1}[value] if isinstance(value, str) else value
        tables.parse(packed(header | {field: number}, arrays))

    for value in good:
        parse(value)
    for value in bad:
        with pytest.raises(ValueError, match="damaged code tables"):
            parse(value)


def test_there_are_up_to_64_temperatures() -> None:
    header, arrays = tables.unpack(known_tables()[1])
    for count in (64, 65):
        data = packed(
            header | {"temperatures": [1.0] * count}, arrays | {"tail_counts": np.zeros((64 * count, 32), np.uint8)}
        )
        if count == 64:
            assert len(tables.parse(data).temperatures) == 64
        else:
            with pytest.raises(ValueError, match="out of bounds"):
                tables.parse(data)


ARRAYS: list[tuple[int, str, Any, Any]] = [
    # which tables, array, a change that is good, a change that is not
    (0, "values", lambda a: first(a, -MANY), lambda a: a[:-1]),
    (0, "weights", lambda a: last(a, 2 << 20), lambda a: last(a, (2 << 20) + 1)),
    (0, "weights", lambda a: first(a, 0), lambda a: first(a, -1)),
    (0, "weights", lambda a: first(a, int(a[1])), lambda a: first(a, int(a[1]) + 1)),
    (2, "weights", lambda a: np.minimum(a, 1), lambda a: a * 0),
    (0, "within", lambda a: first(a, 0), lambda a: first(a, -1)),
    (0, "within", lambda a: a, lambda a: a[1:]),
    (2, "within", lambda a: last(a, 9), lambda a: last(a, 10)),
    (0, "odds_mass", lambda a: first(a, 1 << 20), lambda a: first(a, (1 << 20) + 1)),
    (0, "odds_mass", lambda a: last(a, 0), lambda a: last(a, -1)),
    (0, "odds_mass", lambda a: a, lambda a: a[1:]),
    (0, "tail_counts", lambda a: first(a, MANY), lambda a: a[1:]),
    (0, "tail_counts", lambda a: a, lambda a: a.astype("<i8") + (1 << 31)),
    (0, "level_counts", lambda a: first(a, MANY), lambda a: a[:, 1:]),
    (0, "level_counts", lambda a: a, lambda a: first(a, -1)),
    (0, "given_counts", lambda a: first(a, 0), lambda a: a[1:]),
    (0, "given_counts", lambda a: a, lambda a: np.append(a, a[:1], axis=0)),
    (0, "within", lambda a: a, lambda a: np.append(a, a[-1:])),
    (0, "odds_mass", lambda a: a, lambda a: np.append(a, a[-1:])),
    (0, "tail_counts", lambda a: a, lambda a: np.append(a, a[:1], axis=0)),
    (0, "level_counts", lambda a: a, lambda a: np.append(a, a[:1], axis=0)),
    (0, "seen_ids", lambda a: a, lambda a: first(a, -1)),
    (0, "seen_ids", lambda a: last(a, 299), lambda a: last(a, 300)),
    (0, "seen_ids", lambda a: a, lambda a: first(a, int(a[1]))),
    (0, "type_gaps", lambda a: a, lambda a: a[1:]),
    (0, "type_gaps", lambda a: a, lambda a: first(a, 300)),
    (0, "type_counts", lambda a: last(a, 5), lambda a: a[1:]),
    (0, "type_counts", lambda a: first(a * 0, 1 << 30), lambda a: first(a * 0, (1 << 30) + 1)),
    (0, "type_sizes", lambda a: a, lambda a: first(a, 0)),
    (0, "class_tokens", lambda a: a, lambda a: a[1:]),
    (0, "class_tokens", lambda a: last(a, 299), lambda a: last(a, 300)),
    (0, "class_of_token", lambda a: last(a, 4), lambda a: last(a, 5)),
]


@pytest.mark.parametrize(("number", "name", "good", "bad"), ARRAYS)
def test_an_array_is_within_its_limits(number: int, name: str, good: Any, bad: Any) -> None:
    header, arrays = tables.unpack(known_tables()[number])
    tables.parse(packed(header, arrays | {name: good(arrays[name])}))
    with pytest.raises(ValueError, match="damaged code tables"):
        tables.parse(packed(header, arrays | {name: bad(arrays[name])}))


def test_levels_are_at_least_two_and_at_most_8192() -> None:
    header, arrays = tables.unpack(known_tables()[0])
    for count, fits in ((1, False), (2, True), (8192, True), (8193, False)):
        changed = {"values": np.zeros(count, "<i4"), "weights": np.zeros(count, "<i4"), "within": np.zeros(1025, "<u1")}
        data = packed(header | {"dense_top": 0}, arrays | changed)
        if fits:
            assert len(tables.parse(data).quantiser.values) == count
        else:
            with pytest.raises(ValueError, match="out of bounds"):
                tables.parse(data)
    assert levels.HIGHEST_LEVEL == 8191


def test_a_file_becomes_as_much_as_is_said_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    data = known_tables()[1]
    size = zstandard.frame_content_size(data[len(tables.MAGIC) :])
    for spare, ratio in ((size, 0), (size - len(data), 1), (0, -(-size // len(data)))):
        monkeypatch.setattr(tables, "SPARE_BYTES", spare)
        monkeypatch.setattr(tables, "MOST_RATIO", ratio)
        tables.unpack(data)
    monkeypatch.setattr(tables, "MOST_RATIO", 0)
    monkeypatch.setattr(tables, "SPARE_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"would become {size}; at most {size - 1} are read"):
        tables.unpack(data)
    monkeypatch.setattr(tables, "SPARE_BYTES", size)
    monkeypatch.setattr(tables, "LARGEST_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"at most {size - 1} are read"):
        tables.unpack(data)


def test_limits_are_those_of_the_format() -> None:
    """docs/cache-format.md says these."""
    assert (tables.SPARE_BYTES, tables.MOST_RATIO) == (4 << 20, 64)
    assert (tables.LARGEST_VOCABULARY, tables.LARGEST_TYPES) == (1 << 20, 256)


def raw(head: bytes, body: bytes = b"") -> bytes:
    return tables.MAGIC + zstandard.ZstdCompressor().compress(struct.pack("<I", len(head)) + head + body)


@pytest.mark.parametrize(
    "listed",
    [
        [["values", "<f4", [1]]], [["values", ",1", [1]]], [["values", "O", [1]]], [["values", "<i4", [-1]]],
        [["values", "<i4", [1.0]]], [["values", "<i4", [3]]], [["values", "<i4", ["1"]]], [["more", "<i4", [1]]],
        [["values", "<i4", [1]], ["values", "<i4", [1]]], [["values", "<i4"]], [1], 1, [["values", "<i4", 1]],
        [[["values"], "<i4", [1]]], [["values", 4, [1]]], [["values", "<i4", [1 << 40, 1 << 40]]],
    ],
)  # fmt: skip
def test_arrays_are_of_whole_numbers_and_all_there(listed: Any) -> None:
    good = raw(json.dumps({"arrays": [["values", "<i4", [1, 2]]]}).encode(), b"\1\0\0\0\2\0\0\0")
    header, arrays = tables.unpack(good)
    assert header == {} and arrays["values"].tolist() == [[1, 2]]
    with pytest.raises(ValueError):  # noqa: PT011 - any of its messages
        tables.unpack(raw(json.dumps({"arrays": listed}).encode(), b"\1\0\0\0\2\0\0\0"))


@pytest.mark.parametrize(
    "data",
    [
        b"", tables.MAGIC, raw(b""), raw(b"{}"), raw(b"[]"), raw(b"{"), raw(b"[" * 100_000), b"x" + known_tables()[0],
        known_tables()[0] + b"x", known_tables()[0][:-1],
    ],
)  # fmt: skip
def test_what_is_no_table_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of its messages
        tables.parse(data)


@pytest.mark.parametrize("fraction", [1, 2, 4])
def test_logarithms_are_those_of_the_format(fraction: int) -> None:
    for value in [*range(1, 300), *(1 << bits for bits in range(48)), *((1 << bits) - 1 for bits in range(1, 48))]:
        bits = value.bit_length()
        expected = bits << fraction
        if bits > fraction:
            expected += (value >> (bits - 1 - fraction)) % (1 << fraction)
        assert levels.bit_length(value) == bits
        assert levels.logarithm(value, fraction) == expected
        assert tables.logarithms(np.array([value]), fraction)[0] == expected


@pytest.mark.parametrize("symbols", [2, 32])
def test_every_symbol_has_slots_in_proportion(symbols: int) -> None:
    weights = np.arange(3 * symbols).reshape(3, symbols) ** 2
    weights[1] = 0
    starts = tables.starts_of(weights)
    shares = np.diff(starts, axis=1)
    assert starts.dtype == np.int32 and (starts[:, 0] == 0).all() and (starts[:, -1] == 1 << 15).all()
    for row in range(3):
        total = max(int(weights[row].sum()), 1)
        expected = [int(weight) * ((1 << 15) - symbols) // total + 1 for weight in weights[row]]
        expected[int(np.argmax(weights[row]))] += (1 << 15) - sum(expected)
        assert shares[row].tolist() == expected


def test_ids_seen_times_types_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    header, arrays = tables.unpack(known_tables()[0])
    data = packed(header, arrays)
    cells = arrays["seen_ids"].size * arrays["type_sizes"].size
    monkeypatch.setattr(tables, "LARGEST_CELLS", cells)
    tables.parse.__wrapped__(data)  # nothing that was parsed before the limit changed
    monkeypatch.setattr(tables, "LARGEST_CELLS", cells - 1)
    with pytest.raises(ValueError, match="out of bounds"):
        tables.parse.__wrapped__(data)


def test_tokens_outside_the_vocabulary_are_of_the_class_of_unseen_ones() -> None:
    header, arrays = tables.unpack(known_tables()[0])
    classes = {"class_tokens": np.array([0, 299], "<u2"), "class_of_token": np.array([1, 2], "<u1")}
    given = np.array([[9, 0, 0, 0], [0, 90, 0, 0], [0, 0, 900, 0], [1, 1, 1, 1], [5, 5, 5, 5]], "<u2")
    code = packed(header, arrays | classes | {"given_counts": given})
    targets, _ = good_targets(0, 1)

    def ids(token: int) -> bytes:
        columns = compact.encode(targets, np.array([1]), np.array([token], np.int32), code).columns
        return columns["ids"][0].as_py()

    assert ids(-1) == ids(300) == ids(1 << 30) == ids(150)
    assert len({ids(0), ids(299), ids(150)}) == 3
