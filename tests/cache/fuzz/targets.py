"""What the fuzzer feeds (`benchmarks/fuzz.py`).

A target gives bytes to one reader of untrusted input, behind the digests that would have stopped them. A refusal is of
the reader's own kind; what is not refused is within bounds; anything else is a finding. `tests/cache/corpus/TARGET/`
holds inputs that between them reach what fuzzing has reached, and every finding; `outcomes.json`, which
`python -m tests.cache.fuzz.targets` writes, what comes of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cache.fuzz import decoders, files

CORPUS = Path(__file__).parent.parent / "corpus"
OUTCOMES = CORPUS / "outcomes.json"


@dataclass(frozen=True)
class Target:
    """`run` says what came of an input (`Outcome`) and raises for a finding; `seeds` makes inputs to start from, none
    longer than `most_bytes`."""

    run: Callable[[bytes], str]
    seeds: Callable[[], list[bytes]]
    most_bytes: int
    is_json: bool = False


TARGETS = {
    "manifest": Target(files.manifest, files.manifest_seeds, 2048, is_json=True),
    "receipt": Target(files.receipt, files.receipt_seeds, 1024, is_json=True),
    "index": Target(files.index, files.index_seeds, 4096),
    "arrow": Target(files.arrow, files.arrow_seeds, 4096),
    "tables-file": Target(decoders.tables_file, decoders.tables_file_seeds, 8192),
    "tables": Target(decoders.tables_edited, decoders.tables_edited_seeds, 97),
    "compact-1": Target(decoders.compact_1, decoders.compact_1_seeds, 512),
    "plain-1": Target(decoders.plain_1, decoders.plain_1_seeds, 512),
    "plain-1-weighted": Target(decoders.weighted, decoders.weighted_seeds, 256),
    "dense-1": Target(decoders.dense_1, decoders.dense_1_seeds, 128),
    "shard": Target(decoders.shard_file, decoders.shard_file_seeds, 8192),
}


def corpus() -> dict[str, bytes]:
    """Every input by its name, `TARGET/FILE`."""
    files = [path for name in TARGETS for path in sorted((CORPUS / name).iterdir())]
    return {path.relative_to(CORPUS).as_posix(): path.read_bytes() for path in files}


def outcomes() -> dict[str, str]:
    """What comes of every input in the corpus."""
    return {name: TARGETS[name.split("/")[0]].run(data) for name, data in corpus().items()}


if __name__ == "__main__":
    OUTCOMES.write_text(json.dumps(outcomes(), indent=0) + "\n")
