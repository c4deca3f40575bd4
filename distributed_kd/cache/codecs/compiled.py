"""Machine code for the kernels where numba is at hand, the same lines interpreted where it is not.

The kernels are written in the part of Python that both run: 64-bit integers, arrays, loops. Interpreted they are
some thousand times slower and give the same bytes, so a cache can be read with numpy alone; a test holds the two together.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

try:
    if os.environ.get("DKD_INTERPRET_KERNELS"):
        raise ImportError("asked to interpret")
    import numba
except ImportError:
    numba = None

COMPILED = numba is not None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    if numba is None:
        return function
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep the compiled code in: compile at each start
        return numba.njit(**options)(function)
