"""Sources that this package makes itself from public data that other packages carry: `corpus.source: builtin:NAME`.

Each of `NAMES` is a module here, with `VERSION`, `PACKAGES`, the modules that it needs, `EXTRA`, that of ours which has
them, and `write(folder)`, which writes Parquet files into an empty folder or raises `RequestError` naming what is to be
installed. One is made once a machine, under `~/.cache/distributed_kd/sources` (or `$DKD_CACHE`), whole or not at all.
"""

from __future__ import annotations

import importlib
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed_kd import console
from distributed_kd.errors import RequestError
from distributed_kd.models.locate import cache_folder

PREFIX = "builtin:"
NAMES = ("digits", "speech", "speech_unlabelled", "tweets")


def resolve(reference: str) -> str:
    """The folder of a `builtin:NAME` source, made if need be; any other reference as it is."""
    if not reference.startswith(PREFIX):
        return reference
    source, target = _source_of(reference)
    if not target.exists():
        with console.waiting(f"making corpus.source {reference}, once on this machine"):
            _make(source.write, target)
    return str(target)


def packages(reference: str) -> list[tuple[str, str]]:
    """(module, our extra) of what a source is still to be made with here; none of any other reference."""
    if not reference.startswith(PREFIX):
        return []
    source, target = _source_of(reference)
    return [] if target.exists() else [(module, source.EXTRA) for module in source.PACKAGES]


def _source_of(reference: str) -> tuple[Any, Path]:
    """Its module, and the folder that it is made in."""
    name = reference.removeprefix(PREFIX)
    if name not in NAMES:
        raise RequestError(f"corpus.source {reference}: there is no such source; those there are: {', '.join(NAMES)}")
    source = importlib.import_module(f"{__name__}.{name}")
    return source, cache_folder() / "sources" / f"{name}-{source.VERSION}"


def _make(write: Callable[[Path], None], target: Path) -> None:
    """Two who make one at once are harmless: the first to finish has made it."""
    own = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    own.mkdir(parents=True)
    try:
        write(own)
        try:
            own.rename(target)
        except OSError:  # it is there meanwhile
            if not target.exists():
                raise
    finally:
        shutil.rmtree(own, ignore_errors=True)
