"""The positions that the report shows are those of the scores, and their words those of the tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distributed_kd.corpus.sequences import Sequence
from distributed_kd.evaluate.chosen import Chosen, Position
from distributed_kd.evaluate.examples import AFTER, BEFORE, Words, described
from distributed_kd.models.tokenizer import load_tokenizer
from tests import toys
from tests.teacher.test_targets import sequences_of


@pytest.mark.parametrize("chunk", [1, 7, 60])
def test_the_chosen_are_the_extremes_and_the_same_however_positions_are_divided(chunk: int) -> None:
    random = torch.Generator().manual_seed(0)
    log_q = {name: torch.randn(60, 20, generator=random).log_softmax(dim=1) for name in ("teacher", "student")}
    kl = np.random.default_rng(1).integers(0, 12, 60).astype(np.float32)  # with many that are equal
    chosen = Chosen("student", 3, 60)
    for first in range(0, 60, chunk):
        here = slice(first, first + chunk)
        chosen.look(
            first,
            {name: own[here] for name, own in log_q.items()},
            {"teacher": np.zeros(len(kl[here])), "student": kl[here]},
            np.arange(60.0)[here],
        )
    found = chosen.positions()
    by_reason = {reason: [one.number for own, one in found if own == reason] for reason, _ in found}
    assert by_reason["largest"] == np.argsort(-kl, kind="stable")[:3].tolist()
    assert by_reason["smallest"] == np.argsort(kl, kind="stable")[:3].tolist()
    drawn = np.sort(np.random.default_rng(0).choice(60, 3, replace=False)).tolist()
    assert by_reason["drawn"] == drawn, "or one of those drawn is an extreme"
    for _, one in found:
        assert one.teacher_entropy == one.number
        assert one.kl == {"teacher": 0.0, "student": kl[one.number]}
        for name, best in one.best.items():
            p, ids = log_q[name][one.number].exp().sort(descending=True)
            assert [number for number, _ in best] == ids[:5].tolist()
            assert [probability for _, probability in best] == pytest.approx(p[:5].tolist())


def test_few_positions_and_few_ids() -> None:
    chosen = Chosen("student", 3, 2)
    log_q = {"student": torch.zeros(2, 3).log_softmax(dim=1)}
    chosen.look(0, log_q, {"student": np.array([1.0, 0.0])}, np.zeros(2))
    found = chosen.positions()
    assert [(reason, one.number) for reason, one in found] == [("largest", 0), ("largest", 1)]
    assert len(found[0][1].best["student"]) == 3


def position(number: int) -> Position:
    return Position(number, 1.5, {"teacher": 0.0, "student": 2.0}, {"teacher": [(3, 0.5)], "student": [(70, 0.25)]})


def describe(sequences: list[Sequence], number: int, words: Words) -> dict[str, object]:
    return described([("drawn", position(number))], sequences, words)[0]


def test_a_causal_position_has_what_stood_before_it_in_its_document(tmp_path: Path) -> None:
    toys.save_tokenizer(tmp_path)
    words = Words("causal_lm", load_tokenizer(tmp_path))
    held_out = sequences_of([2, 3, 4], list(range(5, 15)), packing="isolate")
    number = held_out[0].loss_mask[:7].sum()  # position 7 of the first sequence, in the second document
    found = describe(held_out, int(number), words)
    at = int(found["position"])  # type: ignore[call-overload]
    begin = at - int(held_out[0].position_ids[at])
    ids = held_out[0].input_ids
    assert begin > 0 and found["before"] == words.text(ids[begin : at + 1])
    assert found["label"] == {"id": ids[at + 1], "text": f"w{ids[at + 1] - 2}"}
    assert found["document"] == 1 and found["after"] == ""
    assert found["models"] == {
        "teacher": {"kl_from_teacher": 0.0, "best": [{"id": 3, "text": "w1", "probability": 0.5}]},
        "student": {"kl_from_teacher": 2.0, "best": [{"id": 70, "text": "#70", "probability": 0.25}]},
    }
    long = sequences_of(list(range(2, 60)) * 2, length=116)
    before = str(describe(long, 99, words)["before"])
    assert before == words.text(long[0].input_ids[100 - BEFORE : 100]) and len(before.split()) == BEFORE


def test_masked_classes_and_frames(tmp_path: Path) -> None:
    toys.save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = np.arange(2, 42, dtype=np.int32)
    masked = Sequence(
        7, ids, np.arange(40) == 20, np.array([5]), np.array([40], np.int32), False, np.array([9], np.int32)
    )
    found = describe([masked], 0, Words("masked_lm", tokenizer))
    assert found["before"] == "w0 " + " ".join(f"w{n}" for n in range(1, 20))
    assert found["after"] == " ".join(f"w{n}" for n in range(21, 21 + AFTER))
    assert found["label"] == {"id": 9, "text": "w7"}
    text = replace(masked, loss_mask=np.arange(40) == 0)
    found = describe([text], 0, Words("classification", tokenizer))
    assert found["before"] == " ".join(f"w{n}" for n in range(BEFORE)) and found["label"]["text"] == "class 9"  # type: ignore[index]
    frames = replace(masked, features=np.zeros((40, 2), np.float32))
    found = describe([frames], 0, Words("frames", None))
    assert (found["before"], found["position"], found["sequence"]) == ("", 20, 7)
