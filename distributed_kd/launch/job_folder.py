"""What a Ray job runs in: the package, its entry point, the resolved recipe, and the file that the recipe names.

So the code that runs is the code that submitted it. Ray keeps such a folder in its head's memory, so it is bounded.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_kd.bundled import PACKAGE, bundled
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Recipe, dump, makers
from distributed_kd.store.filesystem import Store

MOST_BYTES = 16 << 20  # the package itself is about one MiB
_LEFT_OUT = ("__pycache__", "jobs", "recipes")  # the last two of a wheel: one entry point goes, in a place of its own


@dataclass(frozen=True)
class JobFolder:
    """sources: name in the folder -> the file it is copied from. excluded: what was left out, by name."""

    entrypoint: str
    sources: dict[str, Path]
    recipe: str
    excluded: list[str]

    @property
    def sizes(self) -> dict[str, int]:
        """name -> bytes."""
        return {name: path.stat().st_size for name, path in self.sources.items()} | {
            "recipe.yaml": len(self.recipe.encode())
        }

    def write(self, folder: Path) -> None:
        for name, source in self.sources.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
        (folder / "recipe.yaml").write_text(self.recipe, encoding="utf-8")


def job_folder(stage: str, recipe: Recipe) -> JobFolder:
    """Raises `RequestError` for a stage that has no entry point, and where the files are too large to be sent."""
    entry_points = sorted(path.stem for path in bundled("jobs").glob("*.py"))
    if stage not in entry_points:
        raise RequestError(f"there is no stage {stage!r} to submit; it is one of {', '.join(entry_points)}")
    entry_point = f"jobs/{stage}.py"
    sources, excluded = _package()
    named, elsewhere = _named_by(recipe)
    sources |= {entry_point: bundled(entry_point)} | named
    made = JobFolder(f"python {entry_point} recipe.yaml", sources, dump(_absolute(recipe)), excluded + elsewhere)
    total, largest = sum(made.sizes.values()), max(made.sizes, key=made.sizes.__getitem__)
    if total > MOST_BYTES:
        raise RequestError(
            f"the job's working directory would be {total / 2**20:.1f} MiB and may be {MOST_BYTES >> 20}: the largest "
            f"file is {largest}, {made.sizes[largest] / 2**20:.1f} MiB; keep data out of {PACKAGE}, or in the workdir"
        )
    return made


def _package() -> tuple[dict[str, Path], list[str]]:
    sources: dict[str, Path] = {}
    excluded: list[str] = []
    for folder, folders, files in os.walk(PACKAGE):
        here = Path(folder)
        left_out = {name for name in folders + files if name in _LEFT_OUT or name.startswith(".")}
        excluded += [str((here / name).relative_to(PACKAGE.parent)) for name in left_out]
        folders[:] = sorted(set(folders) - left_out)
        sources |= {str((here / n).relative_to(PACKAGE.parent)): here / n for n in sorted(set(files) - left_out)}
    return sources, sorted(excluded)


def _named_by(recipe: Recipe) -> tuple[dict[str, Path], list[str]]:
    """DeepSpeed's configurations and the recipes that make teachers, at the same relative paths; and the names of those
    that have no place in the folder, which the cluster's nodes must have where the recipe says.

    So the recipe stays as it is, and with it the student's fingerprint.
    """
    names: list[Any] = [one.trainer.deepspeed for one in (recipe, *makers(recipe))]
    names += [own.recipe for own in recipe.teachers]
    files = list(dict.fromkeys(Path(name) for name in names if isinstance(name, str)))
    elsewhere = [file for file in files if file.is_absolute() or ".." in file.parts]
    return {str(file): file for file in files if file not in elsewhere and file.is_file()}, [str(f) for f in elsewhere]


def _absolute(recipe: Recipe) -> Recipe:
    """The same recipe from any directory: local paths that exist here become absolute."""

    def absolute(path: str) -> str:
        return os.path.abspath(path) if "://" not in path and os.path.exists(path) else path

    corpus, student = recipe.corpus, recipe.student
    store = Store(recipe.workdir)
    return recipe.model_copy(
        update={
            "workdir": store.root if store.is_local else recipe.workdir,
            "corpus": corpus.model_copy(
                update={
                    "source": [absolute(source) for source in corpus.sources],
                    "tokenizer": corpus.tokenizer and absolute(corpus.tokenizer),
                }
            ),
            "teachers": [teacher.model_copy(update={"model": absolute(teacher.model)}) for teacher in recipe.teachers],
            "student": student.model_copy(update={"model": student.model and absolute(student.model)}),
        }
    )
