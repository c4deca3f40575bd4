"""Whole folders in a store: models go up and come down as many files at once."""

from __future__ import annotations

import tempfile
from pathlib import Path

from distributed_kd.store.failures import readable
from distributed_kd.store.filesystem import Store


def put_folder(source: Path, store: Store, name: str) -> None:
    """Copies every file of `source` to `name`, each whole and on the disk. Write what marks it complete afterwards.

    On the disk, since the mark is: one that outlived the weights it speaks of would have them used.
    """
    files = sorted(path for path in source.rglob("*") if path.is_file())
    targets = [f"{name}/{file.relative_to(source).as_posix()}" for file in files]
    store.remove_leftovers(*{target.rpartition("/")[0] for target in targets})
    for file, target in zip(files, targets, strict=True):
        store.put_file(str(file), target)


def as_local_folder(store: Store, name: str) -> Path:
    """The folder itself where the store is local, else a copy that lives as long as this machine's temporary files."""
    if store.is_local:
        return Path(store.path(name))
    target = Path(tempfile.mkdtemp(prefix="dkd-"))
    with readable(f"{store.uri}/{name}", "read"):
        store.fs.get(store.path(name) + "/", str(target) + "/", recursive=True)
    return target
