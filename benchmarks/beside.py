"""A workdir beside a recipe's own, for another student of the same sequences or of the same cache."""

from __future__ import annotations

from pathlib import Path

from distributed_kd.recipe import Recipe


def workdir_beside(recipe: Recipe, name: str, *shared: str) -> Path:
    """The recipe's with `-name` to it. `shared`: the folders, `sequences` and `cache`, that both are to have."""
    own = Path(recipe.workdir)
    work = own.parent / f"{own.name}-{name}"
    work.mkdir(parents=True, exist_ok=True)
    for folder in shared:
        if not (work / folder).exists():
            (work / folder).symlink_to((own / folder).absolute())
    return work
