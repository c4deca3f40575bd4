"""What the target methods estimate: the gradient of the KL with the teacher's whole distribution.

Ids that are drawn give it without bias, at every temperature, whichever they were drawn at: the mean over many caches
is within its standard error of the dense gradient. Top-k targets give another gradient, however many caches there are.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.models.parts import Head
from distributed_kd.student.objective import linear_distillation_loss
from distributed_kd.student.position_targets import PositionTargets
from distributed_kd.teacher.targets import full, sample, top_k

N, V, DRAWS, CACHES = 6, 40, 12, 4000


def two_models(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, V] logits of a teacher and a student."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(N, V, generator=random) * 2.0, torch.randn(N, V, generator=random)


def gradient(student: torch.Tensor, soft: SoftTargets, temperature: float, impl: str = "chunked") -> torch.Tensor:
    """[n, V] float64 gradient of T^2 KL in the student's logits; the head is the identity."""
    log_p, log_p_tail = (torch.from_numpy(array) for array in soft.log_probabilities(temperature))
    labels = torch.zeros(len(soft), dtype=torch.int64)
    targets = PositionTargets(labels, torch.from_numpy(soft.ids.astype(np.int64)), log_p, log_p_tail)
    hidden = student.clone().requires_grad_()
    loss = linear_distillation_loss(
        hidden,
        Head(torch.eye(V)),
        targets,
        temperature=temperature,
        alpha=1.0,
        chunk=4096,
        impl=impl,  # type: ignore[arg-type]
    )
    loss.total.backward()
    assert hidden.grad is not None
    return hidden.grad.double()


def dense(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    p, q = ((logits.double() / temperature).softmax(dim=1) for logits in (teacher, student))
    return temperature * (q - p)


@pytest.mark.parametrize(("temperature", "drawn_at"), [(1.0, 1.0), (2.0, 2.0), (1.0, 2.0), (2.0, 1.0), (4.0, 2.0)])
def test_the_mean_gradient_of_drawn_ids_is_the_dense_one(temperature: float, drawn_at: float) -> None:
    teacher, student = two_models(seed=0)
    numbers = np.random.default_rng(1).random((CACHES * N, DRAWS))
    soft = sample(teacher.repeat(CACHES, 1), numbers, (temperature,), drawn_at).to_host()
    found = gradient(student.repeat(CACHES, 1), soft, temperature).reshape(CACHES, N, V)
    exact = dense(teacher, student, temperature)
    scores = ((found.mean(dim=0) - exact) / (found.std(dim=0) / CACHES**0.5)).numpy()
    often = (teacher.double() / drawn_at).softmax(dim=1).numpy() * CACHES * DRAWS > 20  # where chance is near normal
    assert often.mean() > 0.7
    scores = scores[often]
    assert np.abs(scores).max() < 5.0
    assert 0.75 < (scores**2).mean() < 1.3  # the errors are those of chance, neither more nor less


def test_the_gradient_of_top_k_is_another_one() -> None:
    """Even with its tail kept as one outcome: within the tail it says nothing of what is more probable."""
    teacher, student = two_models(seed=0)
    exact = dense(teacher, student, 1.0)
    found = gradient(student, top_k(teacher.clone(), DRAWS, (1.0,)).to_host(), 1.0)
    numbers = np.random.default_rng(1).random((CACHES * N, DRAWS))
    drawn = gradient(student.repeat(CACHES, 1), sample(teacher.repeat(CACHES, 1), numbers, (1.0,), 1.0).to_host(), 1.0)
    error = drawn.reshape(CACHES, N, V).std(dim=0) / CACHES**0.5
    often = teacher.double().softmax(dim=1) * CACHES * DRAWS > 20
    assert ((found - exact).abs() / error)[often].max() > 50.0


def test_the_gradient_of_full_targets_is_the_dense_one() -> None:
    teacher, student = two_models(seed=0)
    for temperature in (1.0, 2.0, 10.0):
        found = gradient(student, full(teacher.clone(), (temperature,)).to_host(), temperature)
        torch.testing.assert_close(found, dense(teacher, student, temperature), rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 30), st.sampled_from([0.5, 1.0, 2.0, 8.0]))
def test_weighted_draws_give_no_negative_kl_and_the_reference_agrees(seed: int, draws: int, drawn_at: float) -> None:
    teacher, student = two_models(seed)
    soft = sample(teacher.clone(), np.random.default_rng(seed).random((N, draws)), (1.0,), drawn_at).to_host()
    for row in range(N):
        one = soft[row : row + 1]
        log_p, log_p_tail = (torch.from_numpy(array) for array in one.log_probabilities(1.0))
        targets = PositionTargets(
            torch.zeros(1, dtype=torch.int64), torch.from_numpy(one.ids.astype(np.int64)), log_p, log_p_tail
        )
        logits = student[row : row + 1]
        kl = linear_distillation_loss(logits, Head(torch.eye(V)), targets, temperature=1.0, alpha=1.0).divergence
        assert kl.item() > -1e-5 * max(1.0, float(log_p.exp().sum()))
    ours, exact = (gradient(student, soft, 1.0, impl) for impl in ("chunked", "reference"))
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5 * max(1.0, exact.abs().max().item()))
