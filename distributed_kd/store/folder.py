"""Whole folders in a store: models go up and come down as many files at once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from distributed_kd.store.filesystem import Store
from distributed_kd.store.whole import whole_file


def put_folder(source: Path, store: Store, name: str) -> None:
    """Copies every file of `source` to `name`, each whole and on the disk. Write what marks it complete afterwards.

    On the disk, since the mark is: one that outlived the weights it speaks of would have them used.
    """
    files = sorted(path for path in source.rglob("*") if path.is_file())
    targets = [f"{name}/{file.relative_to(source).as_posix()}" for file in files]
    store.remove_leftovers(*{target.rpartition("/")[0] for target in targets})
    for file, target in zip(files, targets, strict=True):
        if store.is_local:
            with file.open("rb") as reader, whole_file(store.path(target)) as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
        else:
            store.fs.put_file(str(file), store.path(target))


def as_local_folder(store: Store, name: str) -> Path:
    """The folder itself where the store is local, else a copy that lives as long as this machine's temporary files."""
    if store.is_local:
        return Path(store.path(name))
    target = Path(tempfile.mkdtemp(prefix="dkd-"))
    store.fs.get(store.path(name) + "/", str(target) + "/", recursive=True)
    return target
