"""The cosine term against the formula in float64 autograd, alone and in the student's whole loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distributed_kd import cache
from distributed_kd.errors import RequestError
from distributed_kd.models import parts
from distributed_kd.models.load import load_model
from distributed_kd.recipe import Objective, parse
from distributed_kd.store.filesystem import Store
from distributed_kd.student.artifact import arm_recipe, made_from_of
from distributed_kd.student.cosine import cosine_loss
from distributed_kd.student.fits import _refuse_other_width
from distributed_kd.student.model import DistillationModel
from distributed_kd.student.stream import MicroBatch, micro_batch_of
from tests import toys
from tests.cache.caches import WIDTH, make_cache
from tests.teacher.test_targets import sequences_of

N, D = 11, 7


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kept", [torch.float16, torch.bfloat16, torch.float32])
def test_value_and_gradient_are_the_formulas(weighted: bool, kept: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    own = torch.randn(N, D, generator=random).requires_grad_()
    teacher = torch.randn(N, D, generator=random).to(kept)
    weight = torch.rand(N, generator=random) if weighted else None
    cosine_loss(own, teacher, weight).backward()
    found = own.detach().double().requires_grad_()
    other = teacher.double()
    cos = (found * other).sum(dim=1) / (found.square().sum(dim=1) * other.square().sum(dim=1)).sqrt()
    expected = ((1.0 - cos) * (1.0 if weight is None else weight.double())).sum()
    expected.backward()
    assert cosine_loss(own, teacher, weight).item() == pytest.approx(expected.item(), rel=1e-5)
    assert own.grad is not None and found.grad is not None
    torch.testing.assert_close(own.grad.double(), found.grad, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def masked_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.save_masked_model(tmp_path_factory.mktemp("bert"), layers=2, seed=3)


@pytest.mark.parametrize("is_masked", [True, False])
def test_it_is_added_to_the_students_loss(is_masked: bool, masked_model: Path, toy_student: Path) -> None:
    """The state is the student's encoder's last one, before the transform of a masked model's head."""
    folder = masked_model if is_masked else toy_student
    model = load_model(folder, torch.float32, torch.device("cpu"))
    batch = _batch()
    assert batch.targets.hidden is not None
    plain, whole = DistillationModel(model, Objective()), DistillationModel(model, Objective(cosine=3.0))
    without = plain(batch, 1.0)
    total = whole(batch, 1.0)
    total.backward()
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    inputs = {"attention_mask": batch.present.long()} if is_masked else {"position_ids": batch.position_ids}
    states = model(input_ids=batch.input_ids, output_hidden_states=True, **inputs).hidden_states
    own = states[-1][batch.loss_mask].double()
    other = batch.targets.hidden.double()
    cos = (own * other).sum(dim=1) / (own.norm(dim=1) * other.norm(dim=1))
    (3.0 * (1.0 - cos).sum()).backward()
    plain(batch, 1.0).backward()  # the other two terms' gradients are added to those of the formula
    expected = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert total.item() == pytest.approx(without.item() + 3.0 * (len(cos) - cos.sum()).item(), rel=1e-5)
    assert whole.last_loss is not None and plain.last_loss is not None
    assert whole.last_loss.cosine.item() == pytest.approx((1.0 - cos).sum().item(), rel=1e-5)
    assert torch.isnan(plain.last_loss.cosine)
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-4)
    assert torch.isnan(_labels_alone(whole, batch).cosine)


def _labels_alone(student: DistillationModel, batch: MicroBatch) -> parts.Any:
    student(batch, 1.0, labels_alone=True)
    return student.last_loss


def _batch() -> MicroBatch:
    """Two sequences of unlike length; three ids and a hidden state of 32 numbers a position."""
    sequences = sequences_of(list(range(2, 14)), list(range(9, 16)))
    positions = sum(sequence.positions for sequence in sequences)
    random = np.random.default_rng(0)
    ids = np.argsort(random.random((positions, 60)), axis=1)[:, :3]
    log_p = np.log(np.full((positions, 3), 0.3, np.float32))
    batch = micro_batch_of(sequences, ids, log_p, np.log(np.full(positions, 0.1, np.float32)), [0, 0])
    states = torch.from_numpy(random.normal(size=(positions, 32)).astype(np.float16))
    return replace(batch, targets=replace(batch.targets, hidden=states))


def test_a_student_of_another_width_and_a_cache_without_are_refused(tmp_path: Path) -> None:
    make_cache(Store(str(tmp_path / "with")), "plain-1", hidden="float16")
    make_cache(Store(str(tmp_path / "without")), "plain-1")
    _refuse_other_width(WIDTH, cache.open(str(tmp_path / "with")), tmp_path)
    with pytest.raises(RequestError, match=rf"have 32 numbers .*, those of .* {WIDTH}, and there is no projection"):
        _refuse_other_width(32, cache.open(str(tmp_path / "with")), tmp_path)
    with pytest.raises(RequestError, match=r"objective\.cosine needs hidden states, and .* keeps none"):
        _refuse_other_width(WIDTH, cache.open(str(tmp_path / "without")), tmp_path)


def test_students_without_it_are_made_from_what_they_were(toy_recipe: dict[str, parts.Any]) -> None:
    toy_recipe["targets"]["hidden"] = {}
    plain = parse(toy_recipe)
    toy_recipe["objective"]["cosine"] = 0.5
    with_it = parse(toy_recipe)
    assert "cosine" not in made_from_of(plain, "", None)["objective"]
    assert made_from_of(with_it, "", None)["objective"]["cosine"] == 0.5
    assert arm_recipe(with_it, "baseline").objective == arm_recipe(plain, "baseline").objective
