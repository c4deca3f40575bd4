"""Files that come with the package from beside it: recipes and job entry points.

In a checkout they lie beside the package; a wheel carries them inside it.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def bundled(name: str) -> Path:
    """The path of `recipes/...` or `jobs/...`. Raises `FileNotFoundError` when the installation lacks it."""
    for root in (PACKAGE, PACKAGE.parent):
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(name)
