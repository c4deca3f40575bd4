"""compact-1: exact ids, bounded KL, the same bytes each time, and no harm from bytes that no encoder wrote."""

import os
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distributed_kd.cache.codecs import compact, tables
from distributed_kd.cache.soft_targets import NO_ID, SoftTargets

V = 300


def teacher(positions: int, k: int, temperatures=(1.0,), vocabulary=V, seed=0):
    """(targets, tokens): logits of a low-rank model, so that positions have something in common."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocabulary, positions).astype(np.int32)
    factors = np.random.default_rng(99)
    hidden, head = factors.normal(size=(vocabulary, 6)), factors.normal(size=(6, vocabulary))
    logits = 2.0 * (hidden[tokens] + 0.3 * rng.normal(size=(positions, 6))) @ head
    order = np.argsort(-logits, axis=1)
    logits = np.take_along_axis(logits, order, 1)
    logits -= logits[:, :1]
    odds = np.full((positions, len(temperatures)), -np.inf)
    for place, temperature in enumerate(temperatures):
        if k < vocabulary:
            scaled = logits / temperature
            odds[:, place] = np.logaddexp.reduce(scaled[:, k:], axis=1) - np.logaddexp.reduce(scaled[:, :k], axis=1)
    targets = SoftTargets(
        order[:, :k].astype(np.int32), logits[:, :k].astype(np.float32), odds.astype(np.float32), temperatures
    )
    return targets, tokens


def draw(positions: int, draws: int, seed=0):
    """(targets of ids drawn with replacement, tokens)."""
    full, tokens = teacher(positions, V, seed=seed)
    rng = np.random.default_rng(seed)
    width = min(draws, V)
    ids = np.full((positions, width), NO_ID, np.int32)
    logits = np.full((positions, width), -np.inf, np.float32)
    for row in range(positions):
        p = np.exp(full.logits[row].astype(np.float64))
        times = rng.multinomial(draws, p / p.sum())
        order = np.argsort(-times, kind="stable")[: np.count_nonzero(times)]
        ids[row, : len(order)] = full.ids[row][order]
        logits[row, : len(order)] = np.log(times[order] / times[order[0]])
    return SoftTargets(ids, logits, np.full((positions, 1), -np.inf, np.float32), (1.0,)), tokens


def round_trip(targets, tokens, code, lengths=None):
    lengths = np.array([len(targets)]) if lengths is None else np.array(lengths)
    encoded = compact.encode(targets, lengths, tokens, code)
    return compact.decode(encoded.columns, lengths, tokens, targets.temperatures, code), encoded


def as_maps(targets):
    """What each row keeps, without order: {id: logit}."""
    return [
        {int(i): float(z) for i, z in zip(ids, logits, strict=True) if i != NO_ID and z != -np.inf}
        for ids, logits in zip(targets.ids, targets.logits, strict=True)
    ]


def added_kl(targets, decoded, temperature):
    """[N] KL of the kept outcomes, each side's kept mass taken as the exact one."""
    exact, _ = targets.log_probabilities(temperature)
    found, _ = decoded.log_probabilities(temperature)
    costs = np.zeros(len(targets))
    for row in range(len(targets)):
        place = {int(i): n for n, i in enumerate(decoded.ids[row]) if i != NO_ID}
        p = exact[row].astype(np.float64)
        q = np.array([found[row, place[int(i)]] for i in targets.ids[row]], np.float64)
        q += np.logaddexp.reduce(p) - np.logaddexp.reduce(q)
        costs[row] = (np.exp(p) * (p - q)).sum()
    return costs


@pytest.fixture(scope="module")
def sample():
    return teacher(3000, 16)


@pytest.fixture(scope="module")
def code(sample):
    return compact.build_tables(*sample, V)


def test_ids_are_exact_and_the_most_probable_stays_first(code):
    targets, tokens = teacher(500, 16, seed=1)
    decoded, _ = round_trip(targets, tokens, code, [100, 0, 399, 1])
    assert [set(row) for row in as_maps(decoded)] == [set(row) for row in as_maps(targets)]
    assert np.array_equal(decoded.ids[:, 0], targets.ids[:, 0])
    assert (np.diff(decoded.logits, axis=1) <= 0).all() and (decoded.logits[:, 0] == 0).all()
    assert np.abs(decoded.tail_odds - targets.tail_odds).max() <= 2**-11 + 1e-6


@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 2.0), (2.0, 1.0, 4.0), (4.0,)])
@pytest.mark.parametrize("k", [1, 16, 200])
def test_added_kl_is_within_the_promise_at_every_listed_temperature(temperatures, k):
    made = compact.build_tables(*teacher(10_000, k, temperatures), V)
    targets, tokens = teacher(3000, k, temperatures, seed=5)
    decoded, _ = round_trip(targets, tokens, made)
    for temperature in temperatures:
        assert added_kl(targets, decoded, temperature).mean() <= 3e-4


def test_decoding_what_was_decoded_changes_nothing(code):
    targets, tokens = teacher(200, 16, seed=2)
    once, _ = round_trip(targets, tokens, code)
    twice, _ = round_trip(once, tokens, code)
    assert [set(row) for row in as_maps(twice)] == [set(row) for row in as_maps(once)]
    assert np.array_equal(twice.tail_odds, once.tail_odds)


@pytest.mark.parametrize("draws", [1, 7, 50, 1000])
def test_counts_of_draws_are_exact(draws):
    made = compact.build_tables(*draw(400, draws), V, draws)
    targets, tokens = draw(150, draws, seed=3)
    decoded, _ = round_trip(targets, tokens, made, [149, 1])

    def counts(t):
        p = np.exp(t.logits.astype(np.float64))
        times = np.rint(p / p.sum(axis=1, keepdims=True) * draws).astype(int)
        return [
            {int(i): int(n) for i, n in zip(*row, strict=True) if i != NO_ID} for row in zip(t.ids, times, strict=True)
        ]

    assert counts(decoded) == counts(targets)
    assert np.isneginf(decoded.tail_odds).all()


def test_logits_that_are_no_counts_are_refused():
    made = compact.build_tables(*draw(50, 7), V, 7)
    targets, tokens = draw(5, 9, seed=1)
    with pytest.raises(ValueError, match="7 draws"):
        round_trip(SoftTargets(targets.ids[:, :7], targets.logits[:, :7], targets.tail_odds, (1.0,)), tokens, made)


@st.composite
def hard_targets(draw_from):
    """Rows of every shape: ties, equal logits, -inf, fewer ids than W, none, any odds, ids never seen."""
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    positions = draw_from(st.integers(0, 12))
    width = draw_from(st.integers(1, 16))
    kind = draw_from(st.sampled_from(["equal", "ties", "steep", "flat", "zeros"]))
    ids = np.array([rng.permutation(V)[:width] for _ in range(positions)], np.int32).reshape(positions, width)
    scale = {"equal": 0.0, "ties": 2.0, "steep": 60.0, "flat": 0.01, "zeros": 5.0}[kind]
    logits = -np.sort(rng.exponential(scale + 1e-9, (positions, width)), axis=1).astype(np.float32)
    if kind == "ties":
        logits = np.round(logits)
    if kind == "equal":
        logits[:] = 0
    logits -= logits[:, :1]
    for row in range(positions):
        kept = rng.integers(0, width + 1)
        if kind == "zeros":
            logits[row, max(kept, 1) :] = -np.inf
        elif rng.random() < 0.5:
            ids[row, kept:], logits[row, kept:] = NO_ID, -np.inf
    odds = rng.choice([-np.inf, -40.0, -3.0, 0.0, 2.5, 30.0], (positions, 1)).astype(np.float32)
    cut = int(rng.integers(0, positions + 1))
    return (
        SoftTargets(ids, logits, odds, (1.0,)),
        rng.integers(-1, V + 5, positions).astype(np.int32),
        [cut, positions - cut],
    )


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hard_targets())
def test_any_targets_come_back(code, case):
    targets, tokens, lengths = case
    decoded, encoded = round_trip(targets, tokens, code, lengths)
    assert decoded.ids.shape == (len(targets), 16)
    assert [set(row) for row in as_maps(decoded)] == [set(row) for row in as_maps(targets)]
    assert np.array_equal(np.isneginf(decoded.tail_odds), np.isneginf(targets.tail_odds))
    finite = np.isfinite(targets.tail_odds)
    assert np.abs(decoded.tail_odds[finite] - targets.tail_odds[finite]).max(initial=0) <= 2**-11 + 1e-6
    again = compact.encode(targets, np.array(lengths), tokens, code)
    assert all(encoded.columns[name].equals(again.columns[name]) for name in encoded.columns)


@pytest.mark.parametrize(("vocabulary", "k"), [(1, 1), (2, 2), (300, 300), (5000, 5000), (262_144, 8)])
def test_any_k_up_to_the_whole_vocabulary(vocabulary, k):
    rng = np.random.default_rng(k)
    ids = np.array([rng.permutation(vocabulary)[:k] for _ in range(3)], np.int32)
    logits = np.zeros((3, k), np.float32)
    logits[1] = -np.sort(rng.exponential(3.0, k)).astype(np.float32)
    logits[1] -= logits[1, 0]
    odds = np.full((3, 1), -np.inf if k == vocabulary else -1.0, np.float32)
    targets = SoftTargets(ids, logits, odds, (1.0,))
    tokens = np.zeros(3, np.int32)
    for sample in (targets, targets[:0]):
        decoded, _ = round_trip(targets, tokens, compact.build_tables(sample, tokens[: len(sample)], vocabulary))
        assert [set(row) for row in as_maps(decoded)] == [set(row) for row in as_maps(targets)]


def test_tables_and_bytes_are_functions_of_their_inputs(sample, code):
    assert compact.build_tables(*sample, V) == code
    targets, tokens = teacher(64, 16, seed=4)
    _, whole = round_trip(targets, tokens, code, [40, 24])
    alone, _ = compact.encode(targets[40:], np.array([24]), tokens[40:], code), None
    for name, column in whole.columns.items():
        assert column[1] == alone.columns[name][0]  # a sequence's bytes do not depend on its neighbours


def test_a_sequence_decodes_without_its_neighbours(code):
    targets, tokens = teacher(64, 16, seed=4)
    decoded, encoded = round_trip(targets, tokens, code, [40, 24])
    columns = {name: column.slice(1, 1) for name, column in encoded.columns.items()}
    part = compact.decode(columns, np.array([24]), tokens[40:], (1.0,), code)
    assert np.array_equal(part.ids, decoded.ids[40:]) and np.array_equal(part.logits, decoded.logits[40:])


def test_interpreted_kernels_read_and_write_the_same(tmp_path, code):
    targets, tokens = teacher(6, 16, seed=6)
    decoded, encoded = round_trip(targets, tokens, code, [4, 2])
    table = pa.table(encoded.columns)
    with pa.ipc.new_file(str(tmp_path / "shard.arrow"), table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "tables.bin").write_bytes(code)
    np.savez(tmp_path / "arrays.npz", tokens=tokens, ids=targets.ids, logits=targets.logits, odds=targets.tail_odds)
    script = """
import pathlib, sys, numpy as np, pyarrow as pa
from distributed_kd.cache.codecs import compact, compiled
from distributed_kd.cache.soft_targets import SoftTargets
assert not compiled.COMPILED and "numba" not in sys.modules
data = np.load("arrays.npz"); code = pathlib.Path("tables.bin").read_bytes()
table = pa.ipc.open_file("shard.arrow").read_all()
columns = {name: table.column(name).combine_chunks() for name in table.column_names}
lengths = np.array([4, 2])
found = compact.decode(columns, lengths, data["tokens"], (1.0,), code)
np.savez("found.npz", ids=found.ids, logits=found.logits)
targets = SoftTargets(data["ids"], data["logits"], data["odds"], (1.0,))
again = compact.encode(targets, lengths, data["tokens"], code)
assert all(again.columns[name].equals(columns[name]) for name in columns)
"""
    path = os.pathsep.join([os.getcwd(), *sys.path])
    environment = os.environ | {"DKD_INTERPRET_KERNELS": "1", "PYTHONPATH": path}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, env=environment, check=True, timeout=120
    )
    found = np.load(tmp_path / "found.npz")
    assert np.array_equal(found["ids"], decoded.ids) and np.array_equal(found["logits"], decoded.logits)


@pytest.mark.parametrize("draws", [0, 20])
def test_damaged_streams_are_refused_and_do_no_harm(draws):
    sample = draw(500, draws) if draws else teacher(500, 16)
    made = compact.build_tables(*sample, V, draws)
    targets, tokens = draw(40, draws, seed=8) if draws else teacher(40, 16, seed=8)
    lengths = np.array([40])
    columns = compact.encode(targets, lengths, tokens, made).columns
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    unnoticed = 0  # by the coder itself, that is: a digest guards the shard
    for _ in range(1500):
        name = rng.choice(list(columns))
        data = bytearray(columns[name][0].as_py())
        how = rng.randrange(4)
        if how == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif how == 1:
            data = data[: rng.randrange(len(data))]
        elif how == 2:
            data = bytearray(rng.randbytes(rng.randrange(0, 2 * len(data))))
        else:
            data += rng.randbytes(4 * rng.randrange(1, 4))
        try:
            found = compact.decode(
                columns | {name: pa.array([bytes(data)], pa.binary())}, lengths, tokens, (1.0,), made
            )
        except ValueError:
            continue
        unnoticed += 1
        assert found.ids.shape == targets.ids.shape and found.ids.min() >= NO_ID and found.ids.max() < V
    assert unnoticed < 150


def test_damaged_tables_are_refused_or_still_in_bounds(code):
    targets, tokens = teacher(20, 16, seed=8)
    lengths = np.array([20])
    columns = compact.encode(targets, lengths, tokens, code).columns
    header, arrays = tables.unpack(code)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(150):
        name = rng.choice(list(arrays))
        array = arrays[name].copy()
        if not array.size:
            continue
        array.flat[rng.integers(array.size)] = rng.choice([0, 1, np.iinfo(array.dtype).max, np.iinfo(array.dtype).min])
        try:
            found = compact.decode(columns, lengths, tokens, (1.0,), tables.pack(header, arrays | {name: array}))
        except ValueError:
            continue
        assert found.ids.min() >= NO_ID and found.ids.max() < V
    for data in (b"", b"nonsense", code[:-1], code[:200], tables.MAGIC, code[:50] + b"x" + code[51:]):
        with pytest.raises(ValueError):  # noqa: PT011 - any of its messages
            compact.decode(columns, lengths, tokens, (1.0,), data)


def test_what_does_not_fit_the_tables_is_refused(code):
    targets, tokens = teacher(10, 16, seed=1)
    lengths = np.array([10])
    with pytest.raises(ValueError, match="code tables"):
        compact.encode(targets, lengths, tokens, None)
    with pytest.raises(ValueError, match=r"temperatures|tables for"):
        compact.encode(SoftTargets(targets.ids, targets.logits, targets.tail_odds, (2.0,)), lengths, tokens, code)
    with pytest.raises(ValueError, match="vocabulary of 300"):
        compact.encode(SoftTargets(targets.ids + 290, targets.logits, targets.tail_odds, (1.0,)), lengths, tokens, code)
    wide, _ = teacher(10, 17, seed=1)
    with pytest.raises(ValueError, match="keeps 17 ids"):
        compact.encode(wide, lengths, tokens, code)
    with pytest.raises(ValueError, match="not numbers"):
        compact.encode(
            SoftTargets(targets.ids, targets.logits, targets.tail_odds * np.nan, (1.0,)), lengths, tokens, code
        )
    with pytest.raises(ValueError, match="sequences of 9"):
        compact.encode(targets, np.array([9]), tokens, code)
