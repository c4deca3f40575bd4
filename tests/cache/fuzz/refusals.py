"""What every target holds its reader to: errors of its own kind in one short line, and Arrow's memory bounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from distributed_kd.errors import RequestError
from distributed_kd.store.arrow import MOST_RATIO, SPARE_BYTES

LONGEST_LINE = 1000  # characters


@dataclass
class Outcome:
    """What came of an input: a letter for each reader, `g` where it was good and `r` where it was refused."""

    letters: str = ""


@contextmanager
def refused_or_good(outcome: Outcome, *kinds: type[Exception]) -> Iterator[None]:
    """Lets a reader refuse, as one of `kinds`; what is for users is a line."""
    try:
        yield
        outcome.letters += "g"
    except kinds as error:
        outcome.letters += "r"
        said = str(error)
        assert len(said) <= LONGEST_LINE, f"a refusal of {len(said)} characters: {said[:200]!r}"
        if isinstance(error, RequestError):
            assert "\n" not in said, f"a refusal of several lines: {said!r}"
            said.encode()  # a lone surrogate cannot be printed


@contextmanager
def bounded_arrow(data: bytes) -> Iterator[None]:
    """Arrow allocates no more for a file than is said; seen where it is more than ever before in this process."""
    pool = pa.default_memory_pool()
    before, peak = pool.bytes_allocated(), pool.max_memory()
    try:
        yield
    finally:
        taken = pool.max_memory() - before
        assert pool.max_memory() == peak or taken <= SPARE_BYTES + MOST_RATIO * len(data), f"{taken} bytes"
