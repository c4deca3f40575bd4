"""Every divergence against its formula over dense distributions in float64, and that none is ever negative."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distributed_kd.models.parts import Head
from distributed_kd.student import divergence
from distributed_kd.student.chunk_gradient import Form, chunk_gradient
from distributed_kd.student.objective import linear_distillation_loss
from distributed_kd.student.position_targets import PositionTargets
from distributed_kd.teacher.targets import top_k
from tests.student.test_objective import V, case

NAMES = ("forward_kl", "reverse_kl", "jsd", "skewed_kl", "total_variation")
BETA, SKEW = 0.3, 0.2


def written_out(name: str, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The definition, over whole distributions without a zero."""

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a / b).log()).sum()

    mixture = BETA * p + (1 - BETA) * q
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: BETA * kl(p, mixture) + (1 - BETA) * kl(q, mixture),
        "skewed_kl": lambda: kl(p, SKEW * p + (1 - SKEW) * q),
        "total_variation": lambda: (p - q).abs().sum() / 2,
    }[name]()


def with_tail_as_one(probabilities: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    rest = torch.ones(len(probabilities), dtype=torch.bool).index_fill(0, kept, False)
    own = probabilities[kept]
    return torch.cat([own, probabilities[rest].sum()[None]]) if rest.any() else own


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 7, V])
@pytest.mark.parametrize("impl", ["chunked", "triton", "reference"])
def test_value_and_gradients_are_the_formulas(name: str, temperature: float, k: int, impl: Any) -> None:
    alpha = 0.7
    made = case(k, temperature)
    hidden64, weight64 = made["hidden"].double().requires_grad_(), made["weight"].double().requires_grad_()
    logits = hidden64 @ weight64.T
    expected = (1 - alpha) * torch.nn.functional.cross_entropy(logits, made["targets"].labels, reduction="sum")
    for row, kept in enumerate(made["targets"].ids):
        p = with_tail_as_one((made["teacher"][row].double() / temperature).softmax(dim=0), kept)
        q = with_tail_as_one((logits[row] / temperature).softmax(dim=0), kept)
        expected = expected + alpha * temperature**2 * written_out(name, p, q)
    expected.backward()

    hidden, weight = made["hidden"].clone().requires_grad_(), made["weight"].clone().requires_grad_()
    loss = linear_distillation_loss(
        hidden, Head(weight), made["targets"], temperature=temperature, alpha=alpha,
        divergence=divergence.find(name, BETA, SKEW), chunk=5, impl=impl,
    )  # fmt: skip
    loss.total.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, exact in ((hidden.grad, hidden64.grad), (weight.grad, weight64.grad)):
        assert ours is not None
        assert exact is not None
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())


@given(st.sampled_from(NAMES), st.integers(1, V), st.floats(0.1, 30.0), st.floats(0.1, 30.0), st.integers(0, 2**31))
def test_none_is_negative_and_no_gradient_is_lost(name: str, k: int, sharp: float, own: float, seed: int) -> None:
    """From flat to nearly certain, on either side; and nothing moves a student that is the teacher already.

    Row by row, at T = 1 and 2; in half of the rows the last place is empty, and its mass is the tail's.
    """
    random = torch.Generator().manual_seed(seed)
    teacher = torch.randn(6, V, generator=random) * sharp
    soft = top_k(teacher.clone(), k, (1.0, 2.0)).to_host()
    other = torch.randn(6, V, generator=random) * own
    for temperature in (1.0, 2.0):
        log_p, log_p_tail = map(torch.from_numpy, soft.log_probabilities(temperature))
        ids = torch.from_numpy(soft.ids.astype(np.int64))
        log_p_tail[:3] = torch.logaddexp(log_p_tail[:3], log_p[:3, -1])
        log_p[:3, -1], ids[:3, -1] = -torch.inf, -1
        targets = PositionTargets(torch.zeros(6, dtype=torch.int64), ids, log_p, log_p_tail)
        for student in (other, teacher):
            found = chunk_gradient(student, Head(torch.eye(V)), targets, Form(temperature, 1.0, divergence.find(name)))
            assert (found.divergence >= -5e-6).all() and found.grad.isfinite().all()
        assert (found.divergence < 2e-5).all()
        assert (found.grad.abs() < (1.01 if name == "total_variation" else 1e-4)).all()


def test_a_teacher_that_excludes_an_outcome_costs_reverse_kl_a_finite_price() -> None:
    """Every id of the teacher is kept; the student has rows beyond them, which the teacher gives nothing."""
    made = case(V - 8, 1.0, teacher_ids=V - 8)
    hidden = made["hidden"].clone().requires_grad_()
    loss = linear_distillation_loss(
        hidden, Head(made["weight"]), made["targets"], temperature=1.0, alpha=1.0, divergence=divergence.reverse_kl
    )
    loss.total.backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    assert 0.0 < loss.divergence.item() < 60.0 * len(hidden)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reverse_kl", np.log(2.0)),
        ("jsd", BETA * (0.5 * np.log(0.5 / 0.85) + 0.5 * np.log(0.5 / 0.15)) + (1 - BETA) * np.log(1 / 0.85)),
        ("skewed_kl", 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)),
        ("total_variation", 0.5),
    ],
)
def test_an_outcome_that_the_student_rules_out_costs_what_the_formula_says(name: str, expected: float) -> None:
    """0 log 0 is 0: p is (1/2, 1/2) of the first and the last of three outcomes, q (1, 0), and the second is none."""
    log_p, log_q = (torch.tensor([own]).log() for own in ([0.5, 0.0, 0.5], [1.0, 0.0, 0.0]))
    counts = torch.tensor([[True, False, True]])
    found = divergence.find(name, BETA, SKEW)(log_p, log_q, counts)
    assert found.value.item() == pytest.approx(expected, rel=1e-6)
    assert found.slope.isfinite().all() and (found.slope[0, 1:] == 0.0).all()
