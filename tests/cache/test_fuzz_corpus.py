"""What fuzzing found and what it reached, again and without the fuzzer (`benchmarks/fuzz.py`)."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distributed_kd.cache.soft_targets import SoftTargets
from tests.cache.fuzz import decoders
from tests.cache.fuzz.targets import OUTCOMES, TARGETS, corpus


@pytest.mark.parametrize("name", list(TARGETS))
def test_no_input_breaks_a_promise_and_the_same_are_refused(name: str) -> None:
    expected = {key: letters for key, letters in json.loads(OUTCOMES.read_text()).items() if key.startswith(f"{name}/")}
    inputs = {key: data for key, data in corpus().items() if key.startswith(f"{name}/")}
    assert inputs.keys() == expected.keys() and inputs
    for key, data in inputs.items():
        try:
            found = TARGETS[name].run(data)
        except BaseException as error:
            raise AssertionError(f"{key}: {error!r}") from error
        assert found == expected[key], key


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_target_starts_from_inputs_that_fit(name: str) -> None:
    target = TARGETS[name]
    for data in target.seeds():
        assert len(data) <= target.most_bytes
        target.run(data)


def test_a_target_notices_another_error_and_numbers_out_of_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = decoders.compact_1_seeds()[0]

    def breaks(*given: object) -> SoftTargets:
        raise KeyError("no column")

    def strays(*given: object) -> SoftTargets:
        odds = np.zeros((5, 2), np.float32)
        return SoftTargets(np.full((5, 4), 300, np.int32), np.zeros((5, 4), np.float32), odds, (1.0, 2.0))

    for decode, kind in ((breaks, KeyError), (strays, AssertionError)):
        monkeypatch.setattr(decoders.compact, "decode", decode)
        with pytest.raises(kind):
            decoders.compact_1(data)
