"""`dkd plan` on the demo's recipe against the cache that `make demo` left; without one there is nothing to check.

Bytes alone: seconds say how busy the machine is. `benchmarks/plan.py` compares both.
"""

from __future__ import annotations

import json

import pytest

from distributed_kd.cache.inspect import inspect
from tests.commands import ROOT, dkd

WORK = ROOT / "runs" / "demo"
pytestmark = pytest.mark.slow


@pytest.mark.skipif(not (WORK / "report" / "report.json").exists(), reason="no demo report; run `make demo` first")
def test_bytes_are_those_of_the_demos_cache() -> None:
    real = inspect(str(WORK / "cache"))
    done = dkd("plan", ROOT / "recipes" / "demo.yaml", f"workdir={WORK}", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    found = facts["forecast"]
    assert facts["positions"] == real["positions"]
    assert found["bytes_total"] == pytest.approx(real["bytes_total"], rel=0.1)
    stored = sum(path.stat().st_size for path in (WORK / "cache").rglob("*") if path.is_file())
    assert found["bytes_stored"] == pytest.approx(stored, rel=0.1)
    low, high = found["bytes_total_interval"]
    assert high < 1.1 * low
    assert facts["targets"][0]["temperatures"]["1"]["kept_mass"] == pytest.approx(real["mean_kept_mass"], abs=0.03)
