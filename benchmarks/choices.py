"""What a student learns from caches that keep other targets: bytes a position beside held-out figures.

    python benchmarks/choices.py RECIPE [--plot FILE] [--json] [KEY.PATH=VALUE ...]

One cache and one student for each of `CHOICES`, all from the recipe's own sequences, beside its workdir; what is there
is not made again. Figures are of its held-out documents, all students and the recipe's baseline in one pass; a
difference is to the student of the recipe's own targets, its 95% interval of resampled documents. One seed: another one
would move every row. `--plot FILE` draws cross-entropy over bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beside import workdir_beside

from distributed_kd import __version__, stages
from distributed_kd.cache.inspect import inspect
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.evaluate import measures
from distributed_kd.evaluate.scores import Scores, score
from distributed_kd.launch.ray_session import ray_session
from distributed_kd.models.load import load_model
from distributed_kd.models.locate import locate
from distributed_kd.recipe import Recipe, load
from distributed_kd.store.filesystem import Store

CHOICES = {  # by kind, of each the overrides by the figure that tells it from the others
    "top k": {str(k): [f"targets.k={k}"] for k in (4, 16, 64, 256)},
    "top p, at most 256": {
        f"{p:g}": ["targets.method=top_p", f"targets.p={p}", "targets.k=256"] for p in (0.8, 0.95)
    },
    "draws": {str(draws): ["targets.method=sample", f"targets.draws={draws}"] for draws in (12, 50)},
}  # fmt: skip
FIGURES = ("cross_entropy", "kl_from_teacher", "agreement", "accuracy", "ece")
RESAMPLES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--plot", type=Path, help="a PNG of cross-entropy over bytes a position")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("overrides", nargs="*", help="of the recipe's keys")
    options = parser.parse_args()
    recipe = load(options.recipe, options.overrides)
    with ray_session(recipe.capture.address):
        for stage in (stages.prepare, stages.cache, stages.train):
            stage(recipe)
        made = {
            (kind, choice): with_choice(recipe, f"{kind.split(',')[0]} {choice}", targets, options)
            for kind, choices in CHOICES.items()
            for choice, targets in choices.items()
        }
    students = {" ".join(name): f"{own.workdir}/student/export" for name, own in made.items()}
    scores, documents = scored(recipe, students)
    reference = scores["the recipe"]
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"distributed_kd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "recipe": recipe.name, "targets": recipe.targets.model_dump(mode="json"),
        "held_out": {"documents": len(np.unique(documents)), "positions": len(documents)},
        "labels alone": {key: measures.figures(scores["labels alone"])[key] for key in FIGURES},
        "rows": [
            {"kind": kind, "choice": choice, **of_cache(own),
             **{key: measures.figures(scores[f"{kind} {choice}"])[key] for key in FIGURES},
             "differences": measures.differences([scores[f"{kind} {choice}"]], [reference], documents, RESAMPLES)}
            for (kind, choice), own in made.items()
        ],
    }  # fmt: skip
    if options.plot:
        plot(report, options.plot)
    print(json.dumps(report)) if options.json else show(report)


def with_choice(recipe: Recipe, name: str, targets: list[str], options: argparse.Namespace) -> Recipe:
    """The recipe with these targets, captured and trained."""
    work = workdir_beside(recipe, name.replace(" ", "-"), "sequences")
    found = load(options.recipe, [*options.overrides, *targets, f"workdir={work}", "baseline=off"])
    stages.cache(found)
    stages.train(found)
    return found


def of_cache(recipe: Recipe) -> dict[str, Any]:
    """Bytes of the shards: the code tables of so small a corpus would say nothing of a large one."""
    found = inspect(f"{recipe.workdir}/{recipe.capture.folder}")
    shards = found["bytes_total"] - found["bytes_by_part"].get("tables", 0)
    return {"bytes_per_position": shards / found["positions"], "mean_kept_mass": found["mean_kept_mass"]}


def scored(recipe: Recipe, students: dict[str, str]) -> tuple[dict[str, Scores], np.ndarray]:
    """Of each student, of the recipe's own two, and the document of each position."""
    own = {
        name: Store(recipe.workdir).path(f"{arm}/export")
        for name, arm in (("the recipe", "student"), ("labels alone", "baseline"))
    }
    teacher = recipe.teachers[0]
    paths = {"teacher": locate(teacher.model, teacher.revision)}
    paths |= {name: Path(path) for name, path in (own | students).items()}
    sequences = Sequences.of(recipe)
    rows = [row for entry in sequences.shards("validation") for row in sequences.read(entry.shard)]
    models = {name: load_model(path, torch.float32, torch.device("cpu")) for name, path in paths.items()}
    capture = recipe.capture
    found = score(models, {"teacher": 1.0}, rows, capture.batch_tokens, capture.head_chunk, lambda done: None)
    return found.models, np.concatenate([row.position_documents for row in rows])


def show(report: dict[str, Any]) -> None:
    print(f"{report['held_out']['documents']} documents, {report['held_out']['positions']:,} positions")
    print(f"{'':22} {'bytes':>7} {'mass':>6} " + " ".join(f"{key:>16}" for key in FIGURES))
    for row in [*report["rows"], {"kind": "labels", "choice": "alone", **report["labels alone"]}]:
        kept = (
            f"{row['bytes_per_position']:7.1f} {row['mean_kept_mass'] or 0:6.3f}" if "differences" in row else " " * 14
        )
        print(f"{row['kind'] + ' ' + row['choice']:22} {kept} " + " ".join(f"{row[key]:16.4f}" for key in FIGURES))
        if "differences" in row:
            change = row["differences"]["cross_entropy"]
            low, high = change["interval"]
            print(f"{'':22} cross-entropy {change['difference']:+.4f} [{low:+.4f}, {high:+.4f}]")


def plot(report: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
    for kind, marker in zip(CHOICES, ("o", "s", "^"), strict=True):
        own = [row for row in report["rows"] if row["kind"] == kind]
        places = [row["bytes_per_position"] for row in own]
        axes.plot(places, [row["cross_entropy"] for row in own], marker=marker, label=kind)
        for row, place in zip(own, places, strict=True):
            at = (place, row["cross_entropy"])
            axes.annotate(row["choice"], at, xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.axhline(report["labels alone"]["cross_entropy"], color="0.4", linestyle=":", label="labels alone")
    axes.set(xlabel="bytes a position", ylabel="held-out cross-entropy, nats", xscale="log")
    axes.set_xticks([10, 20, 50, 100, 200, 400], ["10", "20", "50", "100", "200", "400"])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
