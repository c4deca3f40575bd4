"""Machine code for the kernels where numba is at hand, the same lines interpreted where it is not.

The kernels are written in the part of Python that both run: 64-bit integers, arrays, loops. Interpreted they are some
thousand times slower and give the same bytes, so a cache can be read with numpy alone; a test holds the two together.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

try:
    if os.environ.get("DKD_INTERPRET_KERNELS"):
        raise ImportError("asked to interpret")
    import numba

    COMPILED = True
except ImportError:
    COMPILED = False


def _sources() -> str:
    """A digest of this folder's source. numba keeps compiled code by function and file time and does not see that a
    kernel in another file, compiled into this one, has changed; a name that changes with the source makes it look."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


_SOURCES = _sources() if COMPILED else ""
index = np.uint64  # of an index that is never below 0: numba then leaves out that a[-1] is the last


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a kernel."""
    return _compile(function, {})


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a step of a kernel: a call would pass every array in ten words and count its references."""
    return _compile(function, {"inline": "always"})


def counting_nothing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a kernel that makes no array, so that numba need not count references to those it is given. A count is
    an atomic step, which also keeps the processor from what comes after it: counting would double `pop_ids`' time."""
    return _compile(function, {"_nrt": False})


def _compile(function: Callable[..., Any], more: dict[str, Any]) -> Callable[..., Any]:
    if not COMPILED:
        return function
    function.__qualname__ += f"_{_SOURCES}"
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"} | more
    try:
        return cast(Callable[..., Any], numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no folder to keep the compiled code in: compile at each start
        return cast(Callable[..., Any], numba.njit(**options)(function))
