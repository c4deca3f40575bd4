"""The Triton kernels where they differ from the torch passes: several blocks a row, half precision in place, soft-caps.

On a machine with a GPU they are compiled and run there, else in Triton's interpreter.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from distributed_kd.models.parts import Head
from distributed_kd.student import divergence, objective
from distributed_kd.student.chunk_gradient import chunk_gradient
from distributed_kd.student.objective import Loss, linear_distillation_loss
from distributed_kd.student.position_targets import PositionTargets

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = ("chunk_gradient_triton", "kept_and_rest")
N, D, V, K = 9, 16, 9_001, 12  # V: two whole blocks and a part of one


def case(dtype: torch.dtype, k: int = K) -> tuple[torch.Tensor, torch.Tensor, PositionTargets]:
    """Ids of every block, empty places among them, and labels that are kept in some rows and not in others."""
    random = torch.Generator().manual_seed(5)
    hidden = torch.randn(N, D, generator=random).to(DEVICE, dtype)
    weight = (torch.randn(V, D, generator=random) * 0.7).to(DEVICE, dtype)
    ids = torch.stack([torch.randperm(V, generator=random)[:k] for _ in range(N)])
    ids[:, 0] = torch.arange(N) * 1_125  # 0 and 9,000 are among them
    labels = torch.randint(0, V, (N,), generator=random)
    labels[::2] = ids[::2, min(3, k - 1)]
    log_p = (torch.randn(N, k, generator=random) * 2).log_softmax(dim=1) + torch.tensor(0.8).log()
    if k > 5:
        ids[1:3, -2:] = -1
        log_p[1:3, -2:] = -torch.inf
    tail = torch.log1p(-log_p.exp().sum(dim=1))
    return hidden, weight, PositionTargets(labels, ids, log_p, tail).to(DEVICE)


def gradients(
    hidden: torch.Tensor, head: Head, targets: PositionTargets, **more: Any
) -> tuple[Loss, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    hidden, weight = hidden.clone().requires_grad_(), head.weight.clone().requires_grad_()
    bias = None if head.bias is None else head.bias.clone().requires_grad_()
    loss = linear_distillation_loss(hidden, replace(head, weight=weight, bias=bias), targets, **more)
    loss.total.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss, hidden.grad.double(), weight.grad.double(), None if bias is None else bias.grad


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", ["triton", "chunked"])
def test_many_blocks_and_half_precision(alpha: float, temperature: float, dtype: torch.dtype, impl: str) -> None:
    hidden, weight, targets = case(dtype)
    form: dict[str, Any] = {"temperature": temperature, "alpha": alpha}
    exact = gradients(hidden.double(), Head(weight.double()), targets, impl="reference", **form)
    ours = gradients(hidden, Head(weight), targets, impl=impl, chunk=4, **form)
    # In half precision the logits are rounded where the product is not made in float32, as on the CPU.
    tolerance, bound = (1e-5, 1e-5) if dtype == torch.float32 else (2e-2, 8e-3)
    assert torch.isnan(exact[0].tail) == (alpha == 0.0)
    for got, wanted in zip(ours[0], exact[0], strict=True):
        assert got.item() == pytest.approx(wanted.item(), rel=tolerance, nan_ok=True)
    of_hidden, of_weight = relative(ours[1], exact[1]), relative(ours[2], exact[2])
    print(
        f"{impl}, {dtype}: relative error of the gradients {of_hidden:.1e} of hidden states, {of_weight:.1e} of weight"
    )
    assert of_hidden < bound and of_weight < bound


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_bias_scale_and_soft_cap(temperature: float, alpha: float) -> None:
    hidden, weight, targets = case(torch.float32)
    head = Head(weight, torch.linspace(-1, 1, V, device=DEVICE), scale=0.7, softcap=4.0)
    form: dict[str, Any] = {"temperature": temperature, "alpha": alpha}
    exact = gradients(hidden, head, targets, impl="reference", **form)
    ours = gradients(hidden, head, targets, impl="triton", chunk=5, **form)
    assert ours[0].total.item() == pytest.approx(exact[0].total.item(), rel=1e-5)
    for got, wanted in zip(ours[1:], exact[1:], strict=True):
        assert got is not None
        assert wanted is not None
        assert relative(got.double(), wanted.double()) < 1e-5


@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "skewed_kl", "total_variation"])
def test_every_divergence(name: str) -> None:
    hidden, weight, targets = case(torch.float32)
    form: dict[str, Any] = {"temperature": 2.0, "alpha": 0.5, "divergence": divergence.find(name)}
    exact = gradients(hidden, Head(weight), targets, impl="reference", **form)
    ours = gradients(hidden, Head(weight), targets, impl="triton", chunk=N, **form)
    assert ours[0].divergence.item() == pytest.approx(exact[0].divergence.item(), rel=1e-5)
    assert relative(ours[1], exact[1]) < 1e-5
    assert relative(ours[2], exact[2]) < 1e-5


def test_no_kept_id_and_no_position() -> None:
    hidden, weight, targets = case(torch.float32, k=1)
    nothing = PositionTargets(targets.labels, targets.ids[:, :0], targets.log_p[:, :0], torch.zeros(N, device=DEVICE))
    loss, *grads = gradients(hidden, Head(weight), nothing, temperature=1.0, alpha=0.5, impl="triton")
    exact, *exact_grads = gradients(hidden, Head(weight), nothing, temperature=1.0, alpha=0.5, impl="reference")
    assert loss.total.item() == pytest.approx(exact.total.item(), rel=1e-5)
    assert relative(grads[0], exact_grads[0]) < 1e-5
    empty, _, of_weight, _ = gradients(
        hidden[:0], Head(weight), targets.rows(0, 0), temperature=1.0, alpha=0.5, impl="triton"
    )
    assert empty.total.item() == 0.0
    assert not of_weight.any()


def test_a_number_that_is_not_finite_reaches_the_loss() -> None:
    hidden, weight, targets = case(torch.float32)
    hidden[4, 2] = torch.nan
    loss, *_ = gradients(hidden, Head(weight), targets, temperature=1.0, alpha=0.5, impl="triton")
    assert torch.isnan(loss.total)


@pytest.mark.parametrize("impl", ["chunked", "triton", "reference"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_position_s_weight_multiplies_its_loss_and_its_gradient(impl: Any, alpha: float) -> None:
    hidden, weight, targets = case(torch.float32)
    head = Head(weight, torch.linspace(-1, 1, V, device=DEVICE))
    weights = torch.linspace(0.0, 2.0, N, device=DEVICE)
    more: dict[str, Any] = {"temperature": 2.0, "alpha": alpha, "chunk": 4}
    loss, *grads = gradients(hidden, head, replace(targets, weight=weights), impl=impl, **more)
    rows = [
        gradients(hidden[row : row + 1], head, targets.rows(row, row + 1), impl="reference", **more) for row in range(N)
    ]
    total = sum(float(weights[row]) * rows[row][0].total.item() for row in range(N))
    assert loss.total.item() == pytest.approx(total, rel=1e-5)
    assert grads[0] is not None
    for row in range(N):
        torch.testing.assert_close(grads[0][row], weights[row] * rows[row][1][0], rtol=1e-4, atol=1e-6)
    for place in (2, 3):
        own = sum(weights[row] * rows[row][place].double() for row in range(N))  # type: ignore[union-attr]
        assert relative(grads[place - 1].double(), own) < 1e-5  # type: ignore[union-attr, arg-type]


def test_without_triton_a_gpu_takes_the_torch_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert objective._find("auto", cuda) is objective._find("triton", cuda) is not chunk_gradient
    for name in [name for name in sys.modules if name.startswith("triton") or name.endswith(KERNELS)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert objective._find("auto", cuda) is chunk_gradient
    with pytest.raises(ImportError):
        objective._find("triton", cuda)


@pytest.mark.slow
@pytest.mark.long
def test_the_compiled_form_is_the_same() -> None:
    hidden, weight, targets = case(torch.float32)
    for alpha, temperature in ((0.5, 1.0), (1.0, 2.0), (0.0, 1.0)):
        form: dict[str, Any] = {"temperature": temperature, "alpha": alpha, "chunk": 4}
        exact = gradients(hidden, Head(weight), targets, impl="reference", **form)
        ours = gradients(hidden, Head(weight), targets, impl="compiled", **form)
        assert ours[0].total.item() == pytest.approx(exact[0].total.item(), rel=1e-5)
        assert relative(ours[1], exact[1]) < 1e-5
        assert relative(ours[2], exact[2]) < 1e-5
