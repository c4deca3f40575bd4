"""compact-1 on a few positions of every kind, to the byte: quick enough to run with interpreted kernels too.

The tables are three that were made once and kept (`tests/cache/fuzz/decoders.py`).
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from distributed_kd.cache.codecs import compact, levels, rans, tables, tail
from distributed_kd.cache.soft_targets import NO_ID, SoftTargets
from tests.cache.fuzz.decoders import good_targets, known_tables
from tests.cache.specification_reader import Tables, read_sequence
from tests.cache.test_codec_compact import V, as_maps

LENGTHS = np.array([9, 0, 15])
LARGE, STOP, ABOVE, ALL = 28, 29, 30, 31  # symbols of `levels`, as docs/cache-format.md numbers them
MADE_FROM = [(400, 99, 0), (100, 0, 0), (200, 0, 9)]  # positions, seed, draws of the known tables


def hard_targets(number: int) -> tuple[SoftTargets, np.ndarray]:
    """24 positions that fit the tables: ties, one level for all, -inf, fewer ids, any odds, ids and tokens unseen."""
    targets, tokens = good_targets(number, int(LENGTHS.sum()), seed=5)
    tokens[::5] = (-1, V, 0, 299, V + 7)
    if number == 2:
        return targets, tokens
    rng = np.random.default_rng(number)
    ids, logits, odds = targets.ids.copy(), targets.logits.copy(), targets.tail_odds.copy()
    width = ids.shape[1]
    for row in range(0, len(ids), 2):
        ids[row] = rng.permutation(V)[:width]  # others than are likely, and in no order
    for row, scale in enumerate((0.0, 0.01, 60.0, 0.5, 0.0)):
        logits[row] = -np.sort(scale * rng.exponential(size=width)).astype(np.float32)
    logits[7, 2:] = -np.inf
    for row, kept in ((8, 0), (9, 1), (10, width - 1)):
        ids[row, kept:], logits[row, kept:] = NO_ID, -np.inf
    odds[:8, 0] = (-np.inf, -40.0, -15.0, -14.99, 13.99, 15.0, 30.0, 0.0)
    return SoftTargets(ids, logits, odds, targets.temperatures), tokens


def streams(number: int) -> tuple[compact.Encoded, SoftTargets, np.ndarray]:
    targets, tokens = hard_targets(number)
    return compact.encode(targets, LENGTHS, tokens, known_tables()[number]), targets, tokens


@pytest.mark.parametrize("number", [0, 1, 2])
def test_hard_targets_come_back_and_the_specification_agrees(number: int) -> None:
    encoded, targets, tokens = streams(number)
    code = known_tables()[number]
    decoded = compact.decode(encoded.columns, LENGTHS, tokens, targets.temperatures, code)
    assert [set(row) for row in as_maps(decoded)] == [set(row) for row in as_maps(targets)]
    kept = (targets.ids != NO_ID) & ~np.isneginf(targets.logits)
    first = kept.any(axis=1)
    assert (decoded.ids[first, 0] == targets.ids[first, 0]).all()
    assert (decoded.logits[first, 0] == 0).all()
    finite = np.isfinite(targets.tail_odds)
    assert (np.isneginf(decoded.tail_odds) == ~finite).all()
    assert np.abs(decoded.tail_odds[finite] - targets.tail_odds[finite]).max(initial=0) <= 2**-11 + 1e-6
    read, begin = [], 0
    for row, length in enumerate(LENGTHS):
        own = {name: column[row].as_py() for name, column in encoded.columns.items()}
        read += read_sequence(own, tokens[begin : begin + length].tolist(), Tables(code))
        begin += length
    for position, (ids, logits, odds) in enumerate(read):
        there = decoded.ids[position] != NO_ID
        assert decoded.ids[position][there].tolist() == ids
        assert decoded.logits[position][there].tolist() == np.float32(logits).tolist()
        assert decoded.tail_odds[position].tolist() == odds


BYTES = {0: "435df357ae1ef240", 1: "c26b78ba66f481ae", 2: "c893295ecef069a3"}  # sha256 of all streams


@pytest.mark.parametrize("number", [0, 1, 2])
def test_streams_are_what_they_always_were(number: int) -> None:
    encoded, _, _ = streams(number)
    digest = hashlib.sha256()
    for column in encoded.columns.values():
        for stream in column:
            digest.update(stream.as_py())
    assert digest.hexdigest()[:16] == BYTES[number]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_tables_are_what_they_always_were(number: int) -> None:
    positions, seed, draws = MADE_FROM[number]
    header, arrays = tables.unpack(compact.build_tables(*good_targets(number, positions, seed), V, draws))
    known, expected = tables.unpack(known_tables()[number])
    assert header == known | {"step": pytest.approx(known["step"], rel=1e-12)}
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_tail_odds_are_rounded_to_1024ths_and_held_to_8000() -> None:
    odds = np.array([[0.0, 1.0, -1.5, 1e9, -1e9, 8000.0, -8000.0, 2**-11, -np.inf]], np.float32)
    steps = tail.quantise(odds)
    assert steps.tolist() == [[0, 1024, -1536, 8_192_000, -8_192_000, 8_192_000, -8_192_000, 0, -(1 << 23)]]
    assert tail.dequantise(steps)[0, :3].tolist() == [0.0, 1.0, -1.5]
    assert np.isneginf(tail.dequantise(steps)[0, -1]) and tail.dequantise(steps).dtype == np.float32
    with pytest.raises(ValueError, match="not numbers"):
        tail.quantise(odds * np.nan)


def test_rows_may_keep_far_fewer_ids_than_the_tables_allow() -> None:
    """More than 8192 fewer, which takes the number that is 20 raw bits."""
    vocabulary = 20_000
    ids = np.array([[5, 19_999, 0], [7, -1, -1]], np.int32)
    targets = SoftTargets(
        ids, np.array([[0, -1, -2], [0, -np.inf, -np.inf]], np.float32), np.full((2, 1), -1.0, np.float32), (1.0,)
    )
    sample = SoftTargets(
        np.zeros((0, vocabulary), np.int32), np.zeros((0, vocabulary), np.float32), np.zeros((0, 1), np.float32), (1.0,)
    )
    tokens = np.zeros(2, np.int32)
    code = compact.build_tables(sample, tokens[:0], vocabulary)
    columns = compact.encode(targets, np.array([2]), tokens, code).columns
    decoded = compact.decode(columns, np.array([2]), tokens, (1.0,), code)
    assert decoded.ids[:, :4].tolist() == [[5, 19_999, 0, -1], [7, -1, -1, -1]]
    assert (decoded.ids[:, 4:] == NO_ID).all()
    quantiser = tables.parse(code).quantiser
    events = np.full((levels.most_events(1, vocabulary), 2), 77, np.int32)
    nothing, none, mass = np.full((1, vocabulary), -1, np.int32), np.zeros(1, np.int32), np.ones(1, np.int64)
    count = levels.level_events(
        nothing, none, mass, quantiser.weights, quantiser.within, quantiser.dense_top, False, events
    )
    assert events[:count].tolist() == [[levels.MISSING, LARGE], [-20, vocabulary]]


@pytest.mark.parametrize(
    ("words", "good"),
    [
        ([0x80000000, 0], True),  # 2^31: nothing was pushed
        ([0x80000000, 0, 0, 0], True),  # and zeros are left
        ([0x7FFFFFFF, 0], False),  # below the interval
        ([0, 0], False),
        ([0x80000000, 0x80000000], False),  # above it
        ([0x80000000, 0x80000000, 0, 0], False),
        ([5, 0, 0, 0], False),
        ([0x80000001, 0], False),  # something is left
        ([0x80000000, 1], False),
        ([0x80000000, 0, 0, 1], False),
    ],
)
@pytest.mark.parametrize("name", ["tail", "levels", "ids"])
def test_a_stream_of_nothing_is_whole_or_refused(name: str, words: list[int], good: bool) -> None:
    nothing = np.array([0x80000000, 0], "<u4").tobytes()
    columns = {key: pa.array([nothing, nothing], pa.binary()) for key in ("tail", "levels", "ids")}
    columns[name] = pa.array([nothing, np.array(words, "<u4").tobytes()], pa.binary())
    arguments = (columns, np.array([0, 0]), np.zeros(0, np.int32), (1.0, 2.0), known_tables()[0])
    if good:
        assert compact.decode(*arguments).ids.shape == (0, 4)
    else:
        with pytest.raises(ValueError, match=f"the {name} of sequence 1 are damaged"):
            compact.decode(*arguments)


@pytest.mark.parametrize("stream", [b"", b"1234", b"123456789", None])
def test_streams_are_of_two_words_or_more(stream: bytes | None) -> None:
    encoded, targets, tokens = streams(0)
    for name, column in encoded.columns.items():
        changed = encoded.columns | {name: pa.array([stream, *column[1:].to_pylist()], pa.binary())}
        with pytest.raises(ValueError, match=f"column {name}"):
            compact.decode(changed, LENGTHS, tokens, targets.temperatures, known_tables()[0])


def test_columns_are_those_of_the_sequences() -> None:
    encoded, targets, tokens = streams(0)
    code, temperatures = known_tables()[0], targets.temperatures
    for columns, lengths, own in (
        ({name: column for name, column in encoded.columns.items() if name != "ids"}, LENGTHS, tokens),
        (encoded.columns, LENGTHS[:2], tokens),
        (encoded.columns, LENGTHS, tokens[1:]),
        ({name: column.slice(1) for name, column in encoded.columns.items()}, LENGTHS, tokens),
        (encoded.columns | {"ids": encoded.columns["ids"].cast(pa.large_binary())}, LENGTHS, tokens),
    ):
        with pytest.raises(ValueError, match="column"):
            compact.decode(columns, lengths, own, temperatures, code)
    with pytest.raises(ValueError, match="temperatures"):
        compact.decode(encoded.columns, LENGTHS, tokens, (1.0, 3.0), code)
    with pytest.raises(ValueError, match="code tables"):
        compact.decode(encoded.columns, LENGTHS, tokens, temperatures, None)


def test_targets_that_do_not_fit_the_tables_are_refused() -> None:
    targets, tokens = good_targets(0, 24)
    code = known_tables()[0]

    def encode(lengths: np.ndarray = LENGTHS, **changes: np.ndarray) -> None:
        changed = SoftTargets(**{**vars(targets), **changes})
        compact.encode(changed, lengths, tokens, code)

    highest = targets.ids.copy()
    highest[0] = (299, 0, 1, 2)
    encode(ids=highest)
    for beyond in (300, 305):
        highest[0, 0] = beyond
        with pytest.raises(ValueError, match=f"an id of {beyond} is not of a vocabulary of 300"):
            encode(ids=highest)
    highest[0, 0] = -1  # then it is not kept
    encode(ids=highest)
    wide = np.append(targets.ids, 299 - targets.ids[:, :1], axis=1)
    with pytest.raises(ValueError, match="a row keeps 5 ids; the code tables are for 4"):
        encode(ids=wide, logits=np.append(targets.logits, targets.logits[:, -1:], axis=1))
    for value in (np.nan, np.inf):
        logits = targets.logits.copy()
        logits[3, 1] = value
        with pytest.raises(ValueError, match="not finite"):
            encode(logits=logits)
    with pytest.raises(ValueError, match="not numbers"):
        encode(tail_odds=targets.tail_odds * np.nan)
    with pytest.raises(ValueError, match="in sequences of 25"):
        encode(lengths=LENGTHS + np.array([0, 1, 0]))
    with pytest.raises(ValueError, match="with 23 tokens"):
        compact.encode(targets, LENGTHS, tokens[1:], code)


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 1000, 1 << 20])
def test_an_index_is_popped_as_it_was_pushed(count: int) -> None:
    """Every one of equally likely indices owns slots, the last what is left over."""
    step = (1 << 20) // count
    for index in {0, count // 2, count - 1}:
        slot = index * step
        x = np.int64((12345 << 20) + slot)
        words = np.array([0, 0, 7, 0], np.uint32)
        top, end = np.int64(2), np.int64(4)
        found, after, place = rans.pop_uniform(x, words, top, end, np.int64(count))
        assert found == index
        if count > 1:
            words[2] = 7 if place == 2 else 0  # what was taken comes back
            back, place = rans.push_uniform(after, words, place, top, end, np.int64(index), np.int64(count))
            assert (int(back), int(place), words[2]) == (int(x), 2, 7)


def level_stream(*steps: tuple[str, int, int]) -> tuple[str, int]:
    """(which stream is refused of one position whose levels are these steps and that has no ids, its highest level).

    A step is (context, symbol, raw bits that follow or -1), the context being `missing`, `sparse` or a dense level.
    """
    code = tables.parse(known_tables()[0])
    quantiser = code.quantiser
    odds = np.zeros((1, 2), np.int32)
    (mass,) = quantiser.masses(odds)
    bound = levels.highest_within(mass, quantiser.weights, quantiser.within)
    events, count = np.zeros((20, 2), np.int32), 0
    bits = {ABOVE: 13, ALL: 13, LARGE: 20}
    for where, symbol, raw in steps:
        context = {
            "missing": levels.MISSING,
            "sparse": levels.sparse_context(0, bound, mass, quantiser.weights),
            "dense": levels.dense_context(quantiser.dense_top, mass, 1, quantiser.weights),
        }[where]
        events[count] = context, symbol
        count += 1
        if raw >= 0:
            events[count] = -bits.get(symbol, 2 + (symbol - 8) // 2), raw
            count += 1
    streams = {"levels": stream_of(events, count, code.level_starts)}
    count = tail.tail_events(odds, events)
    streams["tail"] = stream_of(events, count, code.tail_starts)
    streams["ids"] = np.array([0x80000000, 0], "<u4").tobytes()
    columns = {name: pa.array([data], pa.binary()) for name, data in streams.items()}
    with pytest.raises(ValueError, match="damaged") as caught:
        compact.decode(columns, np.array([1]), np.zeros(1, np.int32), (1.0, 2.0), known_tables()[0])
    return str(caught.value).split()[1], int(bound)


def stream_of(events: np.ndarray, count: int, starts: np.ndarray) -> bytes:
    words = np.zeros(2 * count + 8, np.uint32)
    x, place = rans.push_events(events, count, starts, words)
    return words[rans.finish(x, words, place) :].astype("<u4").tobytes()


def test_levels_out_of_bounds_are_refused() -> None:
    """The position keeps one id, but for where it says; good levels are followed by ids that are not there."""
    code = tables.parse(known_tables()[0])
    dense_top, highest = code.quantiser.dense_top, len(code.quantiser.values) - 1
    one = ("missing", 3, -1)
    assert level_stream(("missing", 4, -1))[0] == "ids"  # keeps nothing; there is no type either
    assert level_stream(("missing", 5, -1))[0] == "levels"
    assert level_stream(("missing", LARGE, 3), ("sparse", STOP, -1), ("dense", ALL, -1))[0] == "ids"
    for symbol in (STOP, ABOVE, ALL):
        assert level_stream(("missing", symbol, -1))[0] == "levels"
    for level, found in ((dense_top, "levels"), (dense_top + 1, "ids"), (highest, "ids"), (highest + 1, "levels")):
        assert level_stream(one, ("sparse", ABOVE, level))[0] == found, level
        assert level_stream(one, ("sparse", ALL, level))[0] == "levels"
    _, bound = level_stream(one)
    for level, found in ((dense_top, "levels"), (dense_top + 1, "ids"), (bound, "ids"), (-1, "levels")):
        assert level_stream(one, *number("sparse", bound - level))[0] == found, level
    # dense_top is 1: what is not of level 1 is of level 0.
    for symbol, found in ((0, "ids"), (1, "ids"), (2, "levels"), (STOP, "levels"), (ABOVE, "levels"), (ALL, "ids")):
        assert level_stream(one, ("sparse", STOP, -1), ("dense", symbol, -1))[0] == found, symbol
    # A small number may come as a large one.
    assert level_stream(one, ("sparse", LARGE, bound - dense_top - 1))[0] == "ids"
    assert level_stream(one, ("sparse", STOP, -1), ("dense", LARGE, 1))[0] == "ids"
    assert level_stream(one)[0] == "levels"  # and nothing more


def number(context: str, value: int) -> list[tuple[str, int, int]]:
    if value < 8:
        return [(context, value, -1)]
    length = value.bit_length()
    return [(context, 8 + 2 * (length - 4) + ((value >> (length - 2)) & 1), value & ((1 << (length - 2)) - 1))]


def equal(positions: int, width: int, vocabulary: int) -> tuple[SoftTargets, np.ndarray]:
    """Every id of a position as likely as another."""
    rng = np.random.default_rng(width)
    ids = np.array([rng.permutation(vocabulary)[:width] for _ in range(positions)], np.int32).reshape(positions, width)
    odds = np.zeros((positions, 1), np.float32)
    return SoftTargets(ids, np.zeros((positions, width), np.float32), odds, (1.0,)), np.zeros(positions, np.int32)


@pytest.mark.parametrize("width", [256, 257, 258, 300])
def test_long_runs_of_one_level_are_cut_into_sets_of_256(width: int) -> None:
    targets, tokens = equal(2, width, 300)
    code = compact.build_tables(targets[:0], tokens[:0], 300)
    columns = compact.encode(targets, np.array([2]), tokens, code).columns
    decoded = compact.decode(columns, np.array([2]), tokens, (1.0,), code)
    read = read_sequence({name: column[0].as_py() for name, column in columns.items()}, [0, 0], Tables(code))
    assert decoded.ids.tolist() == [ids for ids, _, _ in read]
    assert np.sort(decoded.ids).tolist() == np.sort(targets.ids).tolist()


@pytest.mark.parametrize(
    ("width", "vocabulary", "good"),
    [(1, 1, True), (3, 3, True), (4, 3, False), (0, 3, False), (1, 1 << 20, True), (1, (1 << 20) + 1, False)],
)
def test_tables_are_of_some_ids_of_a_vocabulary_within_reason(width: int, vocabulary: int, good: bool) -> None:
    targets, tokens = equal(1, width, 5)
    targets.ids[:] = np.arange(width)
    if good:
        code = tables.parse(compact.build_tables(targets, tokens, vocabulary))
        assert (code.width, code.vocabulary_size) == (width, vocabulary)
    else:
        with pytest.raises(ValueError, match=f"{width} ids a position of a vocabulary of {vocabulary}"):
            compact.build_tables(targets, tokens, vocabulary)


def test_a_sample_is_within_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, tokens = equal(3, 2, 5)
    monkeypatch.setattr(tables, "LARGEST_COUNT", 6)
    compact.build_tables(targets, tokens, 5)
    monkeypatch.setattr(tables, "LARGEST_COUNT", 5)
    with pytest.raises(ValueError, match="a sample of 3 positions is more"):
        compact.build_tables(targets, tokens, 5)
    monkeypatch.undo()
    targets.ids[0, 0] = 5
    with pytest.raises(ValueError, match="are not of a vocabulary of 5"):
        compact.build_tables(targets, tokens, 5)


@pytest.mark.parametrize(("draws", "good"), [(1, True), (8191, True), (8192, False)])
def test_there_are_up_to_8191_draws(draws: int, good: bool) -> None:
    targets, tokens = equal(1, 1, 3)
    targets.tail_odds[:] = -np.inf
    if good:
        code = compact.build_tables(targets, tokens, 3, draws)
        assert tables.parse(code).quantiser.draws == draws
        columns = compact.encode(targets, np.array([1]), tokens, code).columns
        found = compact.decode(columns, np.array([1]), tokens, (1.0,), code)
        assert found.ids.tolist() == targets.ids.tolist() and found.logits.tolist() == [[0.0]]
    else:
        with pytest.raises(ValueError, match="8192 draws a position cannot be cached; at most 8191 can"):
            compact.build_tables(targets, tokens, 3, draws)


def test_what_is_not_kept_may_stand_anywhere() -> None:
    ids = np.array([[NO_ID, 9, 7, 5], [8, NO_ID, 6, NO_ID]], np.int32)
    logits = np.array([[-np.inf, 0, -1, 0], [-3, -np.inf, 0, -np.inf]], np.float32)
    targets = SoftTargets(ids, logits, np.zeros((2, 2), np.float32), (1.0, 2.0))
    tokens, code = np.zeros(2, np.int32), known_tables()[0]
    columns = compact.encode(targets, np.array([2]), tokens, code).columns
    decoded = compact.decode(columns, np.array([2]), tokens, (1.0, 2.0), code)
    assert decoded.ids.tolist() == [[9, 5, 7, NO_ID], [6, 8, NO_ID, NO_ID]]  # the first stays first
