"""Whole folders in a store: models go up and come down as many files at once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from distributed_kd.store.filesystem import Store


def put_folder(source: Path, store: Store, name: str) -> None:
    """Copies every file of `source` to `name`. Write what marks it complete afterwards."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        target = f"{name}/{file.relative_to(source).as_posix()}"
        if store.is_local:
            path = Path(store.path(target))
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.tmp")
            shutil.copyfile(file, temporary)
            temporary.replace(path)
        else:
            store.fs.put_file(str(file), store.path(target))


def as_local_folder(store: Store, name: str) -> Path:
    """The folder itself where the store is local, else a copy that lives as long as this machine's temporary files."""
    if store.is_local:
        return Path(store.path(name))
    target = Path(tempfile.mkdtemp(prefix="dkd-"))
    store.fs.get(store.path(name) + "/", str(target) + "/", recursive=True)
    return target
