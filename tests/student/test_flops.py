"""Model FLOP utilisation: the formula, and which devices' peaks are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_kd.recipe import Trainer
from distributed_kd.student import loop
from distributed_kd.student.flops import Work, operations_of, peak_of, work_of
from distributed_kd.student.stream import MicroBatch
from tests.student import scripted_engine


def test_a_token_takes_six_operations_a_parameter_and_four_where_it_is_frozen() -> None:
    assert operations_of(7_000_000_000, 7_000_000_000) == 6 * 7_000_000_000
    assert operations_of(7_000_000_000, 0) == 4 * 7_000_000_000


def test_utilisation_is_operations_over_peak() -> None:
    """1B parameters, 20,000 tokens in 2 s on an A100: 6e9 * 1e4 / 312e12."""
    assert Work(6 * 10**9, 312e12).utilisation(20_000, 2.0) == pytest.approx(0.1923077, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA L4", 121e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("Tesla V100-SXM2-16GB", None),
        ("cpu", None),
    ],
)
def test_peaks_by_the_names_that_devices_have(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


class Batches(scripted_engine.Batches):
    """Rows of 5 tokens, 2 of which are padding."""

    def steps(self, first: int, end: int, is_asked_to_stop: Callable[[], bool]) -> Iterator[list[MicroBatch]]:
        for micro_batches in super().steps(first, end, is_asked_to_stop):
            yield [replace(batch, present=torch.arange(5)[None] < 3) for batch in micro_batches]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("work", [Work(10, 1e3), None])
def test_a_step_counts_its_tokens_and_tells_utilisation_where_the_peak_is_known(work: Work | None) -> None:
    metrics: list[dict[str, Any]] = []
    trainer = Trainer(steps=2, global_batch=1)
    engine = scripted_engine.ScriptedEngine([1.0, 1.0], {})
    loop.train(engine, Batches(), trainer, range(2), metrics, Path(), lambda _: None, work=work)  # type: ignore[arg-type]
    for line in metrics:
        assert line["tokens"] == 3.0
        assert ("flop_utilisation" in line) == (work is not None)
        if work is not None:
            seconds = line["seconds"] / (1.0 - line["data_wait"])
            assert line["flop_utilisation"] == pytest.approx(10 * 3 / seconds / 1e3, rel=1e-6)


def test_a_processors_peak_is_not_known() -> None:
    assert work_of(1, 1, torch.device("cpu")) is None
