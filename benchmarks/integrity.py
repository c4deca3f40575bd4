"""How much damage to a cache is noticed: single flipped bits, cut files, files in each other's place.

    python benchmarks/integrity.py [--flips 5000] [--truncations 500] [--swaps 500] [--seed 0] [--json]

A small finished cache of each codec, and an unfinished one, in a temporary folder; over every file of them. Damage is
`refused` when reading raises one line that names a file; `same` when what is read equals what was written, which is so
of receipts, which a finished cache no longer reads. Of an unfinished one, `dkd verify` is what notices. Anything else
(other data, another exception, more than 2 s) stops the run with what it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import zstandard

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.cache.damage import KINDS, Target, run


def main() -> None:
    parser = argparse.ArgumentParser(description="How much damage to a cache is noticed.")
    for kind, count in zip(KINDS, (5000, 500, 500), strict=True):
        parser.add_argument(f"--{kind}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for codec in ("plain-1", "compact-1", "dense-1"):
        for finished in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                target = Target(Path(folder), codec, finished)
                for kind in KINDS:
                    begun = time.perf_counter()
                    outcomes = run(target, kind, getattr(options, kind), options.seed)
                    seconds = time.perf_counter() - begun
                    state = "finished" if finished else "unfinished"
                    rows.append({
                        "codec": codec, "cache": state, "damage": kind, "cases": outcomes.total(),
                        "refused": outcomes["refused"], "same": outcomes["same"], "other": 0,
                        "seconds": round(seconds, 1),
                    })  # fmt: skip
                    if not options.json:
                        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if options.json:
        versions = {"numpy": np.__version__, "pyarrow": pa.__version__, "zstandard": zstandard.__version__}
        machine = f"{platform.machine()}, Python {platform.python_version()}"
        print(json.dumps({"machine": machine, "versions": versions, "seed": options.seed, "rows": rows}))


if __name__ == "__main__":
    main()
