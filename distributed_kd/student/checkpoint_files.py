"""What lies in a folder of checkpoints, on a disk or in a bucket, and which ranks share the folder of a disk."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from distributed_kd.store.filesystem import Store

_TAG = re.compile(r"step-(\d{8})(?:\.(?:json|universal|tmp))?")
_OF_A_RANK = re.compile(r"zero_pp_rank_(\d+)_")  # DeepSpeed's name of what one rank alone reads


def tag_of(step: int) -> str:
    return f"step-{step:08d}"


def complete_steps(folder: Store) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    found = [_TAG.fullmatch(name) for name in folder.list("") if name.endswith(".json")]
    return [int(name[1]) for name in found if name]


def prune(folder: Store, keep: int, best: int | None) -> None:
    """Removes all but the newest `keep` complete ones and the best, markers first; and what never was completed."""
    complete = complete_steps(folder)
    kept = {*complete[-keep:], best}
    for name in folder.list("") + folder.folders(""):
        found = _TAG.fullmatch(name)
        if found and int(found[1]) < complete[-1] and int(found[1]) not in kept:
            folder.delete(name)


def sizes(folder: Path) -> dict[str, int]:
    """Of all files below, in bytes, by their names relative to it with `/`."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def needed(files: dict[str, int], ranks: list[int]) -> dict[str, int]:
    """Those of a checkpoint's files that these ranks read, where as many ranks wrote it."""
    of_a_rank = {name: _OF_A_RANK.search(name) for name in files}
    return {name: size for name, size in files.items() if not (found := of_a_rank[name]) or int(found[1]) in ranks}


def sharing_ranks(folder: Path) -> list[int]:
    """The ranks that see this local folder, this one among them, ascending: all ranks call it.

    By what they leave there, since hosts may have one name and share a disk, or have none and share nothing.
    """
    from torch import distributed  # ranks have it; who only looks into the folder need not load it

    rank, nonce = distributed.get_rank(), [uuid.uuid4().hex]
    distributed.broadcast_object_list(nonce)
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"rank-{rank}.{nonce[0]}"
    own.touch()
    distributed.barrier()
    found = sorted(int(path.stem.removeprefix("rank-")) for path in folder.glob(f"rank-*.{nonce[0]}"))
    distributed.barrier()
    own.unlink()
    return found
