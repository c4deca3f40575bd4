"""The GPU's way to choose targets gives what the CPU's gives. Without a GPU its kernel runs in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from distributed_kd.cache.soft_targets import NO_ID
from distributed_kd.teacher.device_top_k import largest
from distributed_kd.teacher.targets import top_k, top_k_on_device

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def logits(n: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed)) * 4.0


@pytest.mark.parametrize("vocabulary", [40, 64, 511, 512, 9_003, 9_216])
@pytest.mark.parametrize("k", [1, 7, 33])
def test_the_largest_are_the_largest(vocabulary: int, k: int) -> None:
    made = logits(5, vocabulary).to(DEVICE)
    made[0, -1] = 50.0  # in the part that is no whole block
    made[1, :k] = 40.0 + torch.arange(k, device=DEVICE)  # all of them in one block or two
    values, ids = largest(made, k)
    expected, where = torch.topk(made, k, dim=1)
    assert torch.equal(values, expected)
    assert torch.equal(ids, where)


@pytest.mark.parametrize("temperatures", [(1.0,), (2.0,), (1.0, 2.0, 5.0)])
@pytest.mark.parametrize("p", [1.0, 0.9, 0.3])
def test_the_targets_are_the_same(temperatures: tuple[float, ...], p: float) -> None:
    made = logits(9, 9_003, seed=3)
    expected = top_k(made.clone(), 20, temperatures, p).to_host()
    found = top_k_on_device(made.clone().to(DEVICE), 20, temperatures, p).to_host()
    assert found.ids.tolist() == expected.ids.tolist()
    assert (found.ids == NO_ID).any() == (p < 1.0)
    assert found.logits.tolist() == expected.logits.tolist()
    torch.testing.assert_close(
        torch.from_numpy(found.tail_odds), torch.from_numpy(expected.tail_odds), rtol=1e-5, atol=1e-5
    )


def test_every_id_kept_leaves_no_tail() -> None:
    found = top_k_on_device(logits(3, 12).to(DEVICE), 12, (1.0, 2.0)).to_host()
    assert (found.tail_odds == float("-inf")).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_seen(bad: float) -> None:
    made = logits(2, 9_003)
    made[1, 4_321] = bad
    found = top_k_on_device(made.to(DEVICE), 8, (1.0,)).to_host()
    assert torch.isfinite(torch.from_numpy(found.logits[0])).all()
    assert not torch.isfinite(torch.from_numpy(found.logits[1])).all()
