"""Damaged and hostile caches: never other data, always one line that names a file, soon and in little memory.

`benchmarks/integrity.py` does the same to many more; here are a few hundred, other ones each time.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cache.damage import KINDS, MOST_SECONDS, Target, run
from tests.commands import ROOT

SEED = int(os.environ.get("DKD_TEST_SEED", random.randrange(1 << 32)))
COUNTS = {"flips": 120, "truncations": 40, "swaps": 40}
MOST_GROWTH = 200 << 10  # kilobytes; the bombs would become 400 MB and more


@pytest.fixture(scope="module", params=["plain-1", "compact-1", "dense-1", "compact-1 unfinished"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Target:
    codec, *state = request.param.split()
    return Target(tmp_path_factory.mktemp("cache"), codec, finished=not state)


@pytest.mark.parametrize("kind", list(KINDS))
def test_damage_is_never_read_as_good_data(target: Target, kind: str) -> None:
    print(f"DKD_TEST_SEED={SEED}")
    outcomes = run(target, kind, COUNTS[kind], SEED)
    assert outcomes["refused"] > COUNTS[kind] // 4


def test_hostile_caches_are_refused_by_name_soon_and_in_little_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cache.hostile", str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    wrong = [
        one
        for one in found["outcomes"]
        if one["kind"] != "RequestError"
        or str(tmp_path) not in one["said"]
        or "\n" in one["said"]
        or len(one["said"]) > 1000
        or one["seconds"] > MOST_SECONDS
        or one["verify"] == "good"
    ]
    assert not wrong, "\n".join(map(str, wrong))
    assert len(found["outcomes"]) > 50
    assert found["grown_kilobytes"] < MOST_GROWTH
