"""What a teacher's logits add to half a BERT where labels are few: the general student on some of the labels, with the
teacher's cached logits of all the training tweets, and without (the better of two lengths on development tweets).

    python benchmarks/distilbert_claims.py [--seeds 3] [--labelled SHARE] [--held-out TWEETS] [--json] [OVERRIDES ...]

After `dkd run` of recipes/distilbert-masked.yaml and recipes/distilbert.yaml, whose teacher and students these are; a
student takes as many steps as that recipe's, and the held-out tweets are the same for all. Retention is accuracy by the
teacher's; a difference is of the same tweets under the same seed (the order and the fresh head are its), and its
interval is of resampled seeds and documents. OVERRIDES are those that the recipe was run with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from over_seeds import mean_and_sd

from distributed_kd import __version__, stages
from distributed_kd.corpus.batch import by_length
from distributed_kd.corpus.sequences import Sequence, Sequences
from distributed_kd.evaluate.measures import figures
from distributed_kd.evaluate.scores import Scores, score
from distributed_kd.launch.ray_session import ray_session
from distributed_kd.models.load import choose_device, load_model, resolve_dtype
from distributed_kd.models.locate import locate
from distributed_kd.recipe import Recipe, load

RECIPE = "recipes/distilbert.yaml"
NO_TEACHER = ("teachers=[]", "objective.alpha=0", "baseline=off")
LENGTHS = (0.5, 1.0)  # of the recipe's steps, for a student of few labels alone
FIGURES = ("accuracy", "agreement", "ece", "kl_from_teacher")
RESAMPLES = 2_000
Arms = dict[str, list[Scores]]  # by name, of each seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labelled", type=float, default=0.13, help="share of the training documents: 1,000 tweets")
    parser.add_argument("--held-out", type=int, default=4000, help="tweets that are scored, about")
    parser.add_argument("--workdir", type=Path, default=Path("runs/distilbert/claims"))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("overrides", nargs="*", help="of every recipe, as KEY.PATH=VALUE")
    options = parser.parse_args()
    begun = time.monotonic()
    with ray_session(None):
        rows = [few_labels(options)]
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"distributed_kd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "seeds": options.seeds, "held_out": options.held_out, "overrides": options.overrides,
        "seconds": time.monotonic() - begun,
        "rows": rows,
    }  # fmt: skip
    print(json.dumps(report)) if options.json else show(report)


def few_labels(options: argparse.Namespace) -> dict[str, Any]:
    share = [f"corpus.labelled_fraction={options.labelled}"]
    batch = load(RECIPE, options.overrides).trainer.global_batch
    whole = _sequences(options).manifest.splits["train"].sequences // batch
    arms: Arms = {"labels": [], "labels and logits": []}
    chosen = []
    for seed in range(options.seeds):
        alone = []
        for length in LENGTHS:
            steps = ["trainer.epochs=null", f"trainer.steps={round(length * whole)}"]
            own = [*share, *NO_TEACHER, *steps]
            alone.append(trained(options, f"few/labels-{length:g}-{seed}", seed, own, "few/labels-0.5-0"))
        soft = trained(options, f"few/soft-{seed}", seed, [*share, "baseline=off"], "few/soft-0")
        best = int(np.argmax([own.correct.mean() for own in judged(alone, options, "development")]))
        chosen.append(LENGTHS[best])
        for name, scores in zip(arms, judged([alone[best], soft], options), strict=True):
            arms[name].append(scores)
    return row_of(arms, options, labelled=options.labelled, lengths=chosen)


def trained(options: argparse.Namespace, name: str, seed: int, overrides: list[str], first: str) -> Recipe:
    """The recipe of a finished student. first: whose sequences and cache, once they are there, it shares."""
    workdir = options.workdir / name
    recipe = load(RECIPE, [*options.overrides, f"trainer.seed={seed}", *overrides, f"workdir={workdir}"])
    shared = options.workdir / first
    for part in ("sequences", "cache")[: 1 + len(recipe.teachers)]:
        if (shared / part).exists() and not (workdir / part).exists():
            shutil.copytree(shared / part, workdir / part)
    stages.prepare(recipe)
    if recipe.teachers:
        stages.cache(recipe)
    stages.train(recipe)
    return recipe


def judged(recipes: list[Recipe], options: argparse.Namespace, split: str = "validation") -> list[Scores]:
    """Of each recipe's student, and of the recipe's teacher last, on the same held-out tweets."""
    held_out = _held_out(options, split)
    device = choose_device()
    models = {str(place): load_model(_export(own), torch.float32, device) for place, own in enumerate(recipes)}
    models["teacher"] = load_model(_teacher(options), resolve_dtype("auto", device), device)
    scores = score(models, {"teacher": 1.0}, held_out, 4096, 256, lambda done: None).models
    options.teacher = float(scores["teacher"].correct.mean())
    return [scores[str(place)] for place in range(len(recipes))]


def _sequences(options: argparse.Namespace) -> Sequences:
    return Sequences.of(load(RECIPE, options.overrides))


def _held_out(options: argparse.Namespace, split: str) -> list[Sequence]:
    sequences = _sequences(options)
    found = [one for entry in sequences.shards(split) for one in sequences.read(entry.shard)]
    found = found[:: max(1, len(found) // options.held_out)]  # spread: the source has tweets of one kind together
    return [found[place] for place in by_length(found)]


def _export(recipe: Recipe) -> Path:
    return Path(recipe.workdir) / "student/export"


def _teacher(options: argparse.Namespace) -> Path:
    return locate(load(RECIPE, options.overrides).teachers[0].model)


def row_of(arms: Arms, options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """The second arm against the first."""
    row: dict[str, Any] = {**more, "teacher": options.teacher}
    for name, seeds in arms.items():
        own = [figures(scores) for scores in seeds]
        row[name] = {key: mean_and_sd([one[key] for one in own]) for key in FIGURES}
        row[name] |= {
            "retention": mean_and_sd([one["accuracy"] / options.teacher for one in own]),
            "parameters": seeds[0].parameters,
        }
    documents = np.concatenate([one.position_documents for one in _held_out(options, "validation")])
    first, second = arms.values()
    for key, column in (("accuracy", "correct"), ("agreement", "agrees")):
        rows = [
            getattr(two, column).astype(float) - getattr(one, column).astype(float)
            for one, two in zip(first, second, strict=True)
        ]
        row[f"difference in {key}"] = {"difference": float(np.mean(rows)), "interval": interval(rows, documents)}
    return row


def interval(differences: list[np.ndarray], documents: np.ndarray) -> list[float]:
    """95%: seeds and documents are drawn; the documents are the same for all seeds."""
    _, place = np.unique(documents, return_inverse=True)
    sums = np.stack([np.bincount(place, own) for own in differences])  # [seeds, documents]
    counts = np.bincount(place)
    drawn = np.random.default_rng(0)
    seeds, count = sums.shape
    of_seeds = drawn.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)
    of_documents = drawn.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    means = ((of_seeds @ sums) * of_documents).sum(axis=1) / seeds / (of_documents @ counts)
    return [float(edge) for edge in np.quantile(means, [0.025, 0.975])]


def show(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; {report['seeds']} seeds, {report['held_out']} tweets, {report['seconds']:.0f} s")
    for row in report["rows"]:
        print(f"labels of {row['labelled']:.0%}, teacher {row['teacher']:.3f}, lengths {row['lengths']}")
        for name, own in row.items():
            if isinstance(own, dict) and "retention" in own:
                values = ", ".join(f"{key} {own[key]['mean']:.3f} ({own[key]['sd']:.3f})" for key in FIGURES)
                print(f"  {name:22} retention {own['retention']['mean']:.1%}, {values}")
            elif isinstance(own, dict):
                low, high = own["interval"]
                print(f"  {name:22} {own['difference']:+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()
