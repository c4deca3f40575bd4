"""What a check comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """missing: a recipe cannot run; warning: it can, and may be slow or stop. What is not ok has a fix."""

    check: str
    state: Literal["ok", "warning", "missing"]
    found: str
    fix: str = ""
