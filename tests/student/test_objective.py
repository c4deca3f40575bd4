"""The loss against the formula written out in float64, values and gradients.

The dense reference here is written from the formula alone: it knows the whole teacher distribution and shares no
code with the package.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from distributed_kd.errors import RequestError
from distributed_kd.models.parts import Head
from distributed_kd.student import divergence, objective
from distributed_kd.student.objective import linear_distillation_loss
from distributed_kd.student.position_targets import PositionTargets
from distributed_kd.teacher.targets import top_k
from tests.heads import record_head_rows

N, D, V = 23, 12, 40


def case(k: int, temperature: float, seed: int = 0, teacher_ids: int = V) -> dict[str, Any]:
    """Random hidden states, head, labels, teacher logits, and targets as capture makes them from those logits."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=random)
    weight = torch.randn(V, D, generator=random) * 0.5
    teacher = torch.randn(N, teacher_ids, generator=random) * 3.0
    labels = torch.randint(0, V, (N,), generator=random)
    soft = top_k(teacher.clone(), k, (1.0, temperature)).to_host()
    log_p, log_p_tail = soft.log_probabilities(temperature)
    targets = PositionTargets(
        labels, torch.from_numpy(soft.ids.astype(np.int64)), torch.from_numpy(log_p), torch.from_numpy(log_p_tail)
    )
    return {"hidden": hidden, "weight": weight, "teacher": teacher, "targets": targets}


def written_out(made: dict[str, Any], temperature: float, alpha: float, hidden: Any, weight: Any) -> torch.Tensor:
    """(1 - alpha) CE + alpha T^2 KL over kept ids and one outcome for the rest, summed over positions, float64."""
    p = (made["teacher"].double() / temperature).softmax(dim=1)
    logits = hidden @ weight.T
    q = (logits / temperature).softmax(dim=1)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(N):
        kept = made["targets"].ids[row]
        rest = torch.ones(V, dtype=torch.bool).index_fill(0, kept, False)
        kl = (p[row, kept] * (p[row, kept] / q[row, kept]).log()).sum()
        if rest.any():
            kl = kl + p[row, rest].sum() * (p[row, rest].sum() / q[row, rest].sum()).log()
        label = made["targets"].labels[row]
        cross_entropy = -logits[row].log_softmax(dim=0)[label] if label >= 0 else 0.0
        total = total + (1 - alpha) * cross_entropy + alpha * temperature**2 * kl
    return total


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 10.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 7, V])
@pytest.mark.parametrize("impl", ["chunked", "triton", "reference"])
def test_value_and_gradients_are_the_formulas(temperature: float, alpha: float, k: int, impl: Any) -> None:
    """A position without a label has its soft targets alone."""
    made = case(k, temperature)
    made["targets"].labels[[2, 11, 22]] = -100
    hidden64 = made["hidden"].double().requires_grad_()
    weight64 = made["weight"].double().requires_grad_()
    expected = written_out(made, temperature, alpha, hidden64, weight64)
    expected.backward()

    hidden, weight = made["hidden"].clone().requires_grad_(), made["weight"].clone().requires_grad_()
    loss = linear_distillation_loss(
        hidden, Head(weight), made["targets"], temperature=temperature, alpha=alpha, chunk=5, impl=impl
    )
    loss.total.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, exact in ((hidden.grad, hidden64.grad), (weight.grad, weight64.grad)):
        assert ours is not None
        assert exact is not None
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())


@pytest.mark.parametrize("impl", ["chunked", "triton", "reference"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_tail_is_the_student_s_mass_on_what_is_not_kept(impl: Any, temperature: float) -> None:
    """Of each position, by its weight where positions have one."""
    made = case(7, temperature)
    q = (made["hidden"].double() @ made["weight"].double().T / temperature).softmax(dim=1)
    tail = 1.0 - q.gather(1, made["targets"].ids).sum(dim=1)
    weight = torch.linspace(0.25, 3.0, N)
    form: dict[str, Any] = {"temperature": temperature, "alpha": 0.5, "impl": impl, "chunk": 5}
    for targets, expected in (
        (made["targets"], tail.sum()), (replace(made["targets"], weight=weight), (tail * weight).sum()),
    ):  # fmt: skip
        loss = linear_distillation_loss(made["hidden"], Head(made["weight"]), targets, **form)
        assert loss.tail.item() == pytest.approx(expected.item(), rel=1e-5)


def test_keeping_every_id_is_dense_kl() -> None:
    made = case(V, 2.0)
    p = (made["teacher"].double() / 2.0).log_softmax(dim=1)
    q = (made["hidden"].double() @ made["weight"].double().T / 2.0).log_softmax(dim=1)
    dense = 4.0 * torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item()
    loss = linear_distillation_loss(made["hidden"], Head(made["weight"]), made["targets"], temperature=2.0, alpha=1.0)
    assert loss.total.item() == pytest.approx(dense, rel=1e-6)


def test_alpha_one_never_reads_the_labels() -> None:
    made = case(7, 2.0)
    right = linear_distillation_loss(made["hidden"], Head(made["weight"]), made["targets"], temperature=2.0, alpha=1.0)
    blind = PositionTargets(
        torch.full((N,), -1), made["targets"].ids, made["targets"].log_p, made["targets"].log_p_tail
    )
    loss = linear_distillation_loss(made["hidden"], Head(made["weight"]), blind, temperature=2.0, alpha=1.0)
    assert loss.total.item() == right.total.item()
    assert torch.isnan(loss.cross_entropy)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_cap_scale_and_bias_reach_the_gradient(temperature: float) -> None:
    made = case(7, temperature)
    bias = torch.linspace(-1, 1, V)
    found = {}
    for impl in ("chunked", "reference"):
        hidden, weight = made["hidden"].clone().requires_grad_(), made["weight"].clone().requires_grad_()
        own_bias = bias.clone().requires_grad_()
        head = Head(weight, own_bias, scale=0.5, softcap=3.0)
        loss = linear_distillation_loss(
            hidden,
            head,
            made["targets"],
            temperature=temperature,
            alpha=0.5,
            chunk=6,
            impl=impl,  # type: ignore[arg-type]
        )
        loss.total.backward()
        found[impl] = (loss.total.double(), hidden.grad, weight.grad, own_bias.grad)
    for ours, exact in zip(found["chunked"], found["reference"], strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), rtol=1e-4, atol=1e-5)


def test_ids_the_student_does_not_have_go_to_the_tail() -> None:
    """A teacher's head padded beyond the student's: its mass on those ids is tail mass, and nothing is lost."""
    made = case(9, 1.0, teacher_ids=V + 8)
    targets = made["targets"]
    assert (targets.ids >= V).any()
    p = made["teacher"].double().softmax(dim=1)
    q = (made["hidden"].double() @ made["weight"].double().T).softmax(dim=1)
    expected = 0.0
    for row in range(N):
        kept = targets.ids[row][targets.ids[row] < V]
        rest = torch.ones(V, dtype=torch.bool).index_fill(0, kept, False)
        p_tail = 1.0 - p[row, kept].sum()
        expected += (p[row, kept] * (p[row, kept] / q[row, kept]).log()).sum().item()
        expected += (p_tail * (p_tail / q[row, rest].sum()).log()).item()
    loss = linear_distillation_loss(made["hidden"], Head(made["weight"]), targets, temperature=1.0, alpha=1.0)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)


def test_a_row_without_any_id_of_the_student_is_all_tail() -> None:
    """Then both distributions have one outcome, and the KL is zero with a zero gradient."""
    made = case(3, 1.0)
    targets = PositionTargets(
        made["targets"].labels, made["targets"].ids + V, made["targets"].log_p, made["targets"].log_p_tail
    )
    hidden = made["hidden"].clone().requires_grad_()
    loss = linear_distillation_loss(hidden, Head(made["weight"]), targets, temperature=1.0, alpha=1.0)
    loss.total.backward()
    assert loss.total.item() == pytest.approx(0.0, abs=1e-4)
    assert hidden.grad is not None
    assert hidden.grad.abs().max().item() < 1e-5


@pytest.mark.parametrize("impl", ["chunked", "triton", "reference"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skewed_kl", "total_variation"])
def test_no_position_gives_zero_and_keeps_the_graph(name: str, alpha: float, impl: Any) -> None:
    for temperature in (1.0, 2.0):
        made = case(7, temperature)
        hidden = made["hidden"][:0].clone().requires_grad_()
        weight, bias = made["weight"].clone().requires_grad_(), torch.zeros(V, requires_grad=True)
        loss = linear_distillation_loss(
            hidden, Head(weight, bias), made["targets"].rows(0, 0), temperature=temperature, alpha=alpha, impl=impl,
            divergence=divergence.find(name),
        )  # fmt: skip
        loss.total.backward()
        assert loss.total.item() == 0.0
        for parameter in (weight, bias):
            assert parameter.grad is not None and not parameter.grad.any()
        assert hidden.grad is not None and hidden.grad.shape == (0, D)


@pytest.mark.parametrize("impl", ["chunked", "triton"])
def test_logits_exist_for_a_chunk_of_positions_at_a_time(monkeypatch: pytest.MonkeyPatch, impl: Any) -> None:
    made = case(7, 2.0)
    rows = record_head_rows(monkeypatch)
    hidden, weight = made["hidden"].clone().requires_grad_(), made["weight"].clone().requires_grad_()
    form: dict[str, Any] = {"temperature": 2.0, "alpha": 0.5, "chunk": 5, "impl": impl}
    linear_distillation_loss(hidden, Head(weight), made["targets"], **form).total.backward()
    assert rows == [5, 5, 5, 5, 3]


def test_a_second_backward_pass_is_an_error_and_not_a_wrong_gradient() -> None:
    made = case(7, 1.0)
    hidden = made["hidden"].clone().requires_grad_()
    loss = linear_distillation_loss(hidden, Head(made["weight"]), made["targets"], temperature=1.0, alpha=0.5)
    loss.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.total.backward()


@pytest.mark.parametrize("impl", ["chunked", "triton"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_head_costs_no_product_for_its_gradient(
    monkeypatch: pytest.MonkeyPatch, frozen: bool, impl: Any
) -> None:
    made = case(7, 1.0)
    products: list[int] = []
    add = objective._add_product
    monkeypatch.setattr(objective, "_add_product", lambda *given: (products.append(len(given[2])), add(*given))[1])
    hidden, weight = made["hidden"].clone().requires_grad_(), made["weight"].clone().requires_grad_(not frozen)
    form: dict[str, Any] = {"temperature": 1.0, "alpha": 0.5, "chunk": 5, "impl": impl}
    linear_distillation_loss(hidden, Head(weight), made["targets"], **form).total.backward()
    assert products == ([] if frozen else [5, 5, 5, 5, 3])
    assert (weight.grad is None) == frozen
    assert hidden.grad is not None


def test_the_tail_does_not_cancel_when_the_student_is_nearly_certain() -> None:
    """Kept logits 60 above the rest: 1 - sum of q would be 0 in float32, and its logarithm -inf."""
    hidden = torch.ones(1, 1)
    weight = torch.full((50, 1), -60.0)
    weight[:2] = 0.0
    targets = PositionTargets(
        torch.tensor([0]), torch.tensor([[0, 1]]), torch.tensor([[0.45, 0.45]]).log(), torch.tensor([0.1]).log()
    )
    loss = linear_distillation_loss(hidden, Head(weight), targets, temperature=1.0, alpha=1.0)
    log_q_tail = np.log(48.0) - 60.0 - np.log(2.0)
    expected = 0.9 * np.log(0.45 / 0.5) + 0.1 * (np.log(0.1) - log_q_tail)
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)


def test_a_temperature_that_is_not_cached_is_refused_with_the_list() -> None:
    soft = top_k(torch.randn(2, 10), 3, (1.0, 2.0)).to_host()
    with pytest.raises(RequestError, match=r"temperature 5 is not in the cache; it holds \[1.0, 2.0\]"):
        soft.log_probabilities(5.0)
