"""Targets that leave a GPU on a stream of their own, to pinned memory, are those that the device has."""

from __future__ import annotations

import pytest
import torch

from distributed_kd.teacher.host_copy import HostCopy
from distributed_kd.teacher.targets import DeviceTargets

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CHUNKS, POSITIONS, K = 40, 512, 64


def chunk(number: int, device: torch.device) -> DeviceTargets:
    """Its numbers come out of work that the device has yet to do when the copy is asked for."""
    drawn = torch.Generator(device="cpu").manual_seed(number)
    made = torch.randn(POSITIONS, K, generator=drawn).to(device)
    square = torch.eye(2048, device=device)
    for _ in range(8):
        square = square @ square
    logits = made * square[0, 0]
    hidden = logits[:, :8].to(torch.bfloat16)
    return DeviceTargets((logits * 1000).to(torch.int32), logits, logits[:, :2].clone(), (1.0, 2.0), None, hidden)


def test_what_arrives_is_what_the_device_had() -> None:
    """Memory of a chunk whose copy is under way is not given to the next one, though nobody else holds it."""
    device = torch.device("cuda")
    copy, other = HostCopy(device), HostCopy(torch.device("cpu"))
    for number in range(CHUNKS):
        copy.add(chunk(number, device))
        torch.full((POSITIONS, K), -1.0, device=device)  # would land in memory that was freed too early
        if number % 4 == 3:
            copy.end_batch()
            assert len(copy._under_way) <= 2
        assert copy._chunks[-1].ids.is_pinned() and copy._chunks[-1].logits.device.type == "cpu"
    found = copy.wait()
    for number in range(CHUNKS):
        other.add(chunk(number, torch.device("cpu")))
    expected = other.wait()
    assert len(found) == CHUNKS * POSITIONS
    assert found.logits.tolist() == expected.logits.tolist()
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.tail_odds.tolist() == expected.tail_odds.tolist()
    assert found.hidden is not None and expected.hidden is not None
    assert found.hidden.tolist() == expected.hidden.tolist()
