"""Files that other packages carry, read as they lie there: nothing of such a package is imported."""

from __future__ import annotations

from pathlib import Path

from distributed_kd.errors import RequestError
from distributed_kd.models.locate import resolve_package

CLASSICS = "pip install 'distributed-kd[classics]'"


def packaged_file(reference: str, source: str, package: str, remedy: str) -> Path:
    """The `package:NAME/PATH` that a source is made of. Raises `RequestError` where its package is not installed."""
    try:
        return resolve_package(reference)
    except RequestError as error:
        raise RequestError(
            f"corpus.source builtin:{source} needs {package}, which is not installed: {remedy}"
        ) from error
