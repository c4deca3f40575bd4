"""What capture keeps, against the whole distribution in float64; and that it is kept for the right position."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distributed_kd.corpus.packing import Part, pack
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import RequestError, WorkError
from distributed_kd.recipe import Capture, Corpus, Targets, Teacher
from distributed_kd.teacher.forward import TeacherForward
from distributed_kd.teacher.targets import full, sample, top_k
from tests import toys
from tests.heads import record_head_rows

TEMPERATURES = (1.0, 2.0, 5.0, 10.0)


def sequences_of(*documents: list[int], packing: str = "none", length: int = 16) -> list[Sequence]:
    corpus = Corpus(source="x", sequence_length=length, packing=packing)  # type: ignore[arg-type]
    parts = [Part(number, np.array(ids), np.ones(len(ids), bool)) for number, ids in enumerate(documents)]
    return list(pack(parts, corpus))


@given(st.integers(1, 40), st.integers(0, 2**31), st.floats(0.1, 20.0))
def test_probabilities_and_tail_are_the_teachers_at_every_temperature(k: int, seed: int, spread: float) -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed)) * spread
    soft = top_k(logits.clone(), k, TEMPERATURES).to_host()
    for temperature in TEMPERATURES:
        p = (logits.double() / temperature).softmax(dim=1).numpy()
        log_p, log_p_tail = soft.log_probabilities(temperature)
        exact = np.take_along_axis(p, soft.ids.astype(np.int64), axis=1)
        np.testing.assert_allclose(np.exp(log_p), exact, rtol=2e-5, atol=1e-30)
        rest = p.copy()
        np.put_along_axis(rest, soft.ids.astype(np.int64), 0.0, axis=1)
        np.testing.assert_allclose(np.exp(log_p_tail), rest.sum(axis=1), rtol=2e-5, atol=1e-30)
        # The two are one distribution, though neither was computed from the other.
        np.testing.assert_allclose(np.exp(log_p).sum(axis=1) + np.exp(log_p_tail), 1.0, rtol=1e-5)


def test_a_tail_far_below_float32s_resolution_of_one_is_exact() -> None:
    logits = torch.zeros(1, 2048)
    logits[0, :1024] = 40.0
    soft = top_k(logits.clone(), 1024, (1.0,)).to_host()
    assert soft.log_probabilities(1.0)[1][0] == pytest.approx(-40.0, rel=1e-6)


def test_targets_of_position_t_predict_token_t_plus_one(tmp_path: Path) -> None:
    """The counting teacher is certain of i + 1 after i, so on counting text its top id is the label, everywhere."""
    teacher = TeacherForward(
        Teacher(model=str(toys.save_counting_teacher(tmp_path)), dtype="float32"), Targets(k=3), Capture()
    )
    sequences = sequences_of(list(range(2, 30)), list(range(5, 12)))
    for sequence, soft in zip(sequences, teacher(sequences), strict=True):
        assert soft.ids[:, 0].tolist() == sequence.labels[sequence.loss_mask].tolist()
        assert soft.ids[:, 0].tolist() == (sequence.input_ids[:-1] + 1).tolist()
        assert (np.exp(soft.log_probabilities(1.0)[0][:, 0]) > 0.9).all()


@pytest.mark.parametrize("packing", ["none", "concatenate", "isolate"])
def test_capture_gives_what_the_models_own_forward_gives(toy_teacher: Path, packing: str) -> None:
    """Unequal lengths in padded batches, heads in chunks: the targets are those of each sequence run by itself."""
    teacher = TeacherForward(
        Teacher(model=str(toy_teacher), dtype="float32"),
        Targets(k=5, temperatures=[1.0, 2.0]),
        Capture(batch_tokens=48, head_chunk=7),
    )
    random = np.random.default_rng(0)
    sequences = sequences_of(*[random.integers(2, 60, size).tolist() for size in (16, 9, 30, 2, 5)], packing=packing)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(toy_teacher).eval()
    for sequence, soft in zip(sequences, teacher(sequences), strict=True):
        with torch.no_grad():
            logits = model(
                input_ids=torch.from_numpy(sequence.input_ids.astype(np.int64))[None],
                position_ids=torch.from_numpy(sequence.position_ids)[None],
                use_cache=False,
            ).logits[0, sequence.loss_mask]
        values, ids = logits.topk(5, dim=1)
        assert soft.ids.tolist() == ids.tolist()
        np.testing.assert_allclose(soft.logits, (values - values[:, :1]).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 2, -1])
@pytest.mark.parametrize("is_masked", [False, True])
def test_hidden_states_are_the_models_own(toy_teacher: Path, layer: int, is_masked: bool, tmp_path: Path) -> None:
    """In padded batches, a chunk of positions at a time."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    folder = toys.save_masked_model(tmp_path, layers=3, seed=1) if is_masked else toy_teacher
    model = (AutoModelForMaskedLM if is_masked else AutoModelForCausalLM).from_pretrained(folder).eval()
    targets = Targets(k=5, hidden={"layer": layer, "dtype": "float32"})  # type: ignore[arg-type]
    teacher = TeacherForward(Teacher(model=str(folder), dtype="float32"), targets, Capture(head_chunk=7))
    sequences = sequences_of(*[list(range(2, 2 + size)) for size in (16, 9, 30)])
    for sequence, soft in zip(sequences, teacher(sequences), strict=True):
        with torch.no_grad():
            ids = torch.from_numpy(sequence.input_ids.astype(np.int64))[None]
            own = model(input_ids=ids, output_hidden_states=True).hidden_states[layer][0, sequence.loss_mask]
        np.testing.assert_allclose(soft.hidden, own.numpy(), rtol=1e-4, atol=1e-5)


def test_hidden_states_beyond_float16_are_refused_by_the_remedy(toy_teacher: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(toy_teacher)
    with torch.no_grad():
        model.model.norm.weight.mul_(1e6)
    model.save_pretrained(tmp_path)
    toys.save_tokenizer(tmp_path)
    spec = Teacher(model=str(tmp_path), dtype="float32")
    sequences = sequences_of(list(range(2, 9)))
    with pytest.raises(WorkError, match=r"sequence -?\d+ is not finite .*; try targets\.hidden\.dtype=bfloat16"):
        TeacherForward(spec, Targets(k=5, hidden={}), Capture())(sequences)  # type: ignore[arg-type]
    kept = TeacherForward(spec, Targets(k=5, hidden={"dtype": "bfloat16"}), Capture())(sequences)  # type: ignore[arg-type]
    assert kept[0].hidden is not None and kept[0].hidden.dtype == np.uint16


def test_logits_exist_for_a_chunk_of_positions_at_a_time(toy_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = TeacherForward(
        Teacher(model=str(toy_teacher), dtype="float32"), Targets(k=5), Capture(batch_tokens=64, head_chunk=7)
    )
    rows = record_head_rows(monkeypatch)
    teacher(sequences_of(*[list(range(2, 18))] * 4))
    assert sum(rows) == 4 * 15
    assert max(rows) == 7


def test_more_ids_than_the_teacher_has_are_refused(toy_teacher: Path) -> None:
    with pytest.raises(RequestError, match=r"targets\.k 73 is more than the teacher's 72 ids"):
        TeacherForward(Teacher(model=str(toy_teacher)), Targets(k=73), Capture())


@given(st.floats(0.05, 0.999), st.integers(1, 40), st.integers(0, 2**31), st.floats(0.1, 20.0))
def test_top_p_keeps_the_fewest_ids_that_hold_p(p: float, k: int, seed: int, spread: float) -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed)) * spread
    soft = top_k(logits.clone(), k, TEMPERATURES, p).to_host()
    whole = logits.double().softmax(dim=1).numpy()
    for row, exact in enumerate(whole):
        kept = soft.ids[row][soft.ids[row] >= 0]
        falling = np.sort(exact)[::-1]
        before = np.cumsum(falling) - falling
        assert abs(len(kept) - min(k, int((before < p).sum()))) <= (1 if np.isclose(before, p, atol=1e-6).any() else 0)
        assert (soft.ids[row, len(kept) :] == -1).all()
        assert np.isneginf(soft.logits[row, len(kept) :]).all()
    for temperature in TEMPERATURES:
        log_p, log_p_tail = soft.log_probabilities(temperature)
        at = (logits.double() / temperature).softmax(dim=1).numpy()
        is_kept = soft.ids >= 0
        exact = np.where(is_kept, np.take_along_axis(at, np.maximum(soft.ids, 0).astype(np.int64), axis=1), 0.0)
        np.testing.assert_allclose(np.exp(log_p), exact, rtol=2e-5, atol=1e-30)
        dropped = np.array([np.delete(at[row], soft.ids[row][is_kept[row]]).sum() for row in range(5)])
        np.testing.assert_allclose(np.exp(log_p_tail), dropped, rtol=2e-5, atol=1e-30)


@given(st.integers(0, 2**31), st.floats(0.1, 20.0))
def test_full_is_the_whole_distribution_at_any_temperature(seed: int, spread: float) -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed)) * spread
    soft = full(logits.clone(), TEMPERATURES).to_host()
    assert (soft.ids == np.arange(40)).all()
    for temperature in TEMPERATURES:
        log_p, log_p_tail = soft.log_probabilities(temperature)
        assert np.isneginf(log_p_tail).all()
        exact = (logits.double() / temperature).log_softmax(dim=1).numpy()
        np.testing.assert_allclose(log_p, exact, rtol=1e-5, atol=1e-5)


def numbers(rows: int, draws: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, draws))


@given(st.integers(1, 60), st.integers(0, 2**31), st.floats(0.1, 20.0), st.sampled_from([(1.0,), (1.0, 4.0), (2.0,)]))
def test_drawn_ids_carry_their_counts_and_weights(draws: int, seed: int, spread: float, listed: Any) -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed)) * spread
    soft = sample(logits.clone(), numbers(5, draws, seed), listed, drawn_at=1.0).to_host()
    assert soft.ids.shape == (5, min(draws, 40))
    assert np.isneginf(soft.tail_odds).all()
    kept = soft.ids >= 0
    shares = np.exp(soft.logits.astype(np.float64))
    counts = shares / shares.sum(axis=1, keepdims=True) * draws
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-3)
    assert (np.rint(counts)[kept] >= 1).all()
    assert (np.rint(counts[:, :-1]) >= np.rint(counts[:, 1:])).all()
    for row in range(5):
        assert len(set(soft.ids[row][kept[row]])) == kept[row].sum()
    assert (soft.log_p is None) == (listed == (1.0,))
    drawn = np.take_along_axis(logits.double().log_softmax(1).numpy(), np.maximum(soft.ids, 0).astype(np.int64), 1)
    for temperature in listed:
        at = (logits.double() / temperature).log_softmax(dim=1).numpy()
        at = np.take_along_axis(at, np.maximum(soft.ids, 0).astype(np.int64), axis=1)
        exact = np.log(np.maximum(np.rint(counts), 1) / draws) + at - drawn
        found = soft.log_probabilities(temperature)[0]
        np.testing.assert_allclose(found[kept], exact[kept], rtol=1e-4, atol=1e-4)
        assert np.isneginf(found[~kept]).all()


def test_an_id_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    edges = np.array([[0.0, 0.5, np.nextafter(0.5, 0), np.nextafter(1.0, 0)]])
    assert sorted(sample(logits.clone(), edges, (1.0,), 1.0).ids[0].tolist()) == [-1, -1, 1, 3]


def test_what_a_sequence_draws_depends_on_the_seed_and_on_itself_alone(toy_teacher: Path) -> None:
    """However batches and chunks are formed, and in whichever order; another seed draws other ids."""
    random = np.random.default_rng(0)
    sequences = [
        dataclasses.replace(sequence, sequence_id=number)
        for number, sequence in enumerate(sequences_of(*[random.integers(2, 60, 16).tolist() for _ in range(5)]))
    ]

    def drawn(order: list[Sequence], batch_tokens: int, head_chunk: int, seed: int) -> list[list[list[int]]]:
        teacher = TeacherForward(
            Teacher(model=str(toy_teacher), dtype="float32"),
            Targets(method="sample", draws=9, seed=seed),
            Capture(batch_tokens=batch_tokens, head_chunk=head_chunk),
        )
        return [soft.ids.tolist() for soft in teacher(order)]

    first = drawn(sequences, 64, 7, seed=0)
    assert drawn(sequences, 16, 50, seed=0) == first
    assert drawn(sequences[::-1], 64, 7, seed=0)[::-1] == first
    other = drawn(sequences, 64, 7, seed=1)
    assert other != first
    assert first[0] != first[1]
