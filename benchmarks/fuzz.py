"""Coverage-guided fuzzing of everything that reads a cache: which input makes a reader break what it promises.

    python benchmarks/fuzz.py [--seconds 600] [--target NAME ...] [--seed N] [--minimise] [--json]

The targets are those of `tests/cache/fuzz/targets.py`, one after the other, each with its share of the time in a
process of its own; kernels are interpreted, so that coverage sees them. Needs `pip install 'distributed-kd[fuzz]'`.
Starts from `tests/cache/corpus/` and good inputs. A finding is written to `fuzz-findings/` and ends its target, and
the command exits 1; put the file into the corpus with the fix, as `finding-...`, where an ordinary test runs it.
`--minimise` replaces all else there by the fewest inputs that reach every branch that was reached so far.

`edges` are branches of our Python (numpy, pyarrow and zstandard are not seen), `features` these by how often they were
taken; `corpus` is how many inputs reached something new.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FINDINGS = ROOT / "fuzz-findings"
CORPUS = ROOT / "tests" / "cache" / "corpus"
NAMES = (
    "manifest", "receipt", "index", "arrow", "tables-file", "tables", "compact-1", "plain-1", "plain-1-weighted",
    "dense-1", "shard",
)  # fmt: skip
_MOST_MEGABYTES = 3000
_MOST_SECONDS = 10  # an input


def fuzz(name: str, seconds: int, seed: int, minimise: bool) -> dict[str, Any]:
    """What came of one target."""
    kept = CORPUS / name
    with tempfile.TemporaryDirectory() as folder:
        work, seeds, small = (Path(folder) / part for part in ("work", "seeds", "small"))
        for path in (work, seeds, small, FINDINGS, kept):
            path.mkdir(exist_ok=True, parents=True)
        begun = time.perf_counter()
        done = _target(
            name, seeds, f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={_MOST_SECONDS}",
            f"-rss_limit_mb={_MOST_MEGABYTES}", "-print_final_stats=1", f"-artifact_prefix={FINDINGS}/{name}-",
            work, kept, seeds,
        )  # fmt: skip
        wall = time.perf_counter() - begun
        finding = re.search(r"Test unit written to (\S+)", done.stderr)
        if finding:
            print(done.stderr[-4000:], file=sys.stderr)
        elif minimise:
            merged = _target(name, seeds, "-set_cover_merge=1", "-use_counters=0", small, kept, work, seeds)
            if merged.returncode:
                raise SystemExit(merged.stderr[-4000:])
            for path in kept.iterdir():
                if not path.name.startswith("finding-"):
                    path.unlink()
            for path in small.iterdir():
                shutil.copyfile(path, kept / path.name[:8])
        progress = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/", done.stderr)
        executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        if not progress or (done.returncode and not finding):
            raise SystemExit(done.stderr[-4000:])
        edges, features, corpus = map(int, progress[-1])
        return {
            "target": name, "executions": int(executed[1]) if executed else 0, "seconds": round(wall, 1),
            "edges": edges, "features": features, "corpus": corpus, "kept": len(list(kept.iterdir())),
            "findings": int(bool(finding)), "finding": finding[1] if finding else None,
        }  # fmt: skip


def _target(name: str, seeds: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DKD_INTERPRET_KERNELS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # A command of one word: to merge, libFuzzer starts itself again as its first argument.
    command = seeds.parent / "run"
    itself = shlex.join([sys.executable, __file__, "--run", str(command), name])
    command.write_text(f'#!/bin/sh\nexec {itself} "$@"\n')
    command.chmod(0o755)
    words = [str(command), *map(str, options)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, errors="replace", check=False)


def run(command: str, name: str, options: list[str]) -> None:
    """The process of one target, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["distributed_kd.cache", "distributed_kd.store", "distributed_kd.corpus"]):
        from tests.cache.fuzz.json_mutator import mutate_json
        from tests.cache.fuzz.targets import TARGETS

    target = TARGETS[name]
    for number, data in enumerate(target.seeds()):
        (Path(command).parent / "seeds" / f"{number:03d}").write_bytes(data)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        changed = mutate_json(data, seed) if seed % 4 else None
        return atheris.Mutate(data, most) if changed is None or len(changed) > most else changed

    def one(data: bytes) -> None:
        target.run(data)

    more = {"custom_mutator": mutate} if target.is_json else {}
    atheris.Setup([command, f"-max_len={target.most_bytes}", *options], one, **more)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage-guided fuzzing of everything that reads a cache.")
    parser.add_argument("--seconds", type=int, default=600, help="over all targets")
    parser.add_argument("--target", action="append", choices=NAMES, help="one or more; without, all")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)) % (1 << 31))
    parser.add_argument("--minimise", action="store_true", help="make the corpus the fewest inputs that reach as much")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = options.target or NAMES
    print(f"seed {options.seed}", file=sys.stderr)
    rows = []
    for name in names:
        rows.append(fuzz(name, max(1, options.seconds // len(names)), options.seed, options.minimise))
        if not options.json:
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items() if value is not None), flush=True)
    if options.minimise:
        subprocess.run([sys.executable, "-m", "tests.cache.fuzz.targets"], cwd=ROOT, check=True)
    if options.json:
        machine = f"{platform.machine()}, Python {platform.python_version()}"
        print(json.dumps({"machine": machine, "seed": options.seed, "rows": rows}))
    sys.exit(any(row["findings"] for row in rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        main()
