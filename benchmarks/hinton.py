"""An ensemble of ten acoustic models in one: students by temperature, and what seeds add to the recipe's own report.

    python benchmarks/hinton.py [--seeds 3] [--temperatures 1 2 5 10] [--plot FILE] [--json] [KEY.PATH=VALUE ...]

Runs `recipes/hinton-ensemble.yaml` up to its cache, or finds that done, then trains a student at each temperature from
that one cache, and chooses the temperature on development documents. Of that one and of the baseline as many seeds are
trained; the members stay. Only then are the held-out documents read: `transferred_share` is that of the seeds' mean
accuracies, its interval of resampled documents and seeds together; `of_members` the same with the mean of the
members, which learn from the same labels, in the baseline's place. `means`: the members' arithmetic mean, which the
recipe distils, and their geometric one, on development documents. `--lengths` trains student and baseline, whose batch
has as many labels as a member's, for other numbers of steps and scores them there. `--plot FILE` draws accuracy by
temperature.
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
from over_seeds import mean_and_sd

from distributed_kd import __version__, stages
from distributed_kd.corpus.batch import collate
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.evaluate import measures
from distributed_kd.evaluate.scores import ENSEMBLE, Scores, score
from distributed_kd.launch.ray_session import ray_session
from distributed_kd.models.load import load_model
from distributed_kd.recipe import Recipe, load
from distributed_kd.store.filesystem import Store

RECIPE = "recipes/hinton-ensemble.yaml"
RESAMPLES = 10_000
FIGURES = ("accuracy", "cross_entropy", "ece", "agreement")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 2.0, 5.0, 10.0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[], help="steps of more students and baselines")
    parser.add_argument("--plot", type=Path, help="a PNG of accuracy by temperature, on development documents")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("overrides", nargs="*", help="of the recipe's keys")
    options = parser.parse_args()
    recipe = load(RECIPE, options.overrides)
    with ray_session(None):
        stages.prepare(recipe)
        stages.cache(recipe)
    students = {T: trained(recipe, T, 0, options.overrides, baseline=False) for T in options.temperatures}
    development = scored(recipe, "development", {f"{T:g}": (own, "student") for T, own in students.items()})
    rows = [
        {"temperature": T, **figures(development[0][f"{T:g}"])} for T in options.temperatures
    ]  # fmt: skip
    best = max(rows, key=lambda row: row["accuracy"])["temperature"]
    seeds = [trained(recipe, best, seed, options.overrides, baseline=True) for seed in range(options.seeds)]
    arms = {f"{arm} {seed}": (own, arm) for arm in ("student", "baseline") for seed, own in enumerate(seeds)}
    lengths = [trained(recipe, best, 0, options.overrides, True, steps) for steps in options.lengths]
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"distributed_kd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "temperature": best, "seeds": options.seeds,
        "development_by_temperature": rows,
        "development_by_length": [of_length(recipe, own) for own in lengths],
        "means": means(recipe),
        "development": summary(*scored(recipe, "development", arms)),
        "held_out": summary(*scored(recipe, "validation", arms)),
    }  # fmt: skip
    if options.plot:
        plot(report, options.plot)
    print(json.dumps(report)) if options.json else show(report)


def trained(
    recipe: Recipe, temperature: float, seed: int, overrides: list[str], baseline: bool, steps: int | None = None
) -> Recipe:
    """The student of a temperature, a seed and, if given, a length, from the recipe's own sequences and cache; its own
    is shared."""
    steps = steps or recipe.trainer.steps
    own = [*overrides, f"objective.temperature={temperature}", *([] if baseline else ["baseline=off"])]
    if (temperature, seed, steps) != (recipe.objective.temperature, 0, recipe.trainer.steps):
        length = "" if steps == recipe.trainer.steps else f"-steps{steps}"
        work = workdir_beside(recipe, f"T{temperature:g}-seed{seed}{length}", "sequences", "cache")
        own += [f"workdir={work}", f"trainer.seed={recipe.trainer.seed + seed}", f"trainer.steps={steps}"]
    found = load(RECIPE, own)
    stages.train(found)
    return found


def of_length(recipe: Recipe, own: Recipe) -> dict[str, Any]:
    """A student and its baseline on development documents."""
    found = scored(recipe, "development", {arm: (own, arm) for arm in ("student", "baseline")})[0]
    return {"steps": own.trainer.steps, **{arm: figures(found[arm]) for arm in ("student", "baseline")}}


def scored(
    recipe: Recipe, split: str, arms: dict[str, tuple[Recipe, str]]
) -> tuple[dict[str, Scores], list[Scores], np.ndarray]:
    """Of the models of `arms` and of the ensemble; of its members; the document of each position."""
    members = [str(spec.model) for spec in recipe.teachers]
    paths = dict(zip(members, members, strict=True))
    paths |= {name: Store(own.workdir).path(f"{arm}/export") for name, (own, arm) in arms.items()}
    models = {name: load_model(Path(path), torch.float32, torch.device("cpu")) for name, path in paths.items()}
    sequences = Sequences.of(recipe)
    rows = [row for entry in sequences.shards(split) for row in sequences.read(entry.shard)]
    weights = {member: spec.weight for member, spec in zip(members, recipe.teachers, strict=True)}
    found = score(
        models, weights, rows, recipe.capture.batch_tokens, recipe.capture.head_chunk, lambda done: None
    ).models
    documents = np.concatenate([row.position_documents for row in rows])
    return {name: found[name] for name in (ENSEMBLE, *arms)}, [found[member] for member in members], documents


@torch.no_grad()
def means(recipe: Recipe) -> dict[str, dict[str, float]]:
    """Of the members' distributions, by kind of mean: accuracy and cross-entropy on development documents."""
    models = [load_model(Path(str(spec.model)), torch.float32, torch.device("cpu")) for spec in recipe.teachers]
    weights = torch.tensor([spec.weight for spec in recipe.teachers]).double()
    log_weights = (weights / weights.sum()).log()[:, None, None]
    sequences = Sequences.of(recipe)
    found: dict[str, list[np.ndarray]] = {"arithmetic": [], "geometric": []}
    for entry in sequences.shards("development"):
        for row in sequences.read(entry.shard):
            batch = collate([row])
            assert batch.features is not None
            features, labels = torch.from_numpy(batch.features), torch.from_numpy(batch.labels[0])
            log_p = torch.stack([model(features).logits[0].double().log_softmax(dim=-1) for model in models])
            arithmetic = (log_p + log_weights).logsumexp(dim=0)
            geometric = (log_p * log_weights.exp()).sum(dim=0).log_softmax(dim=-1)
            for kind, own in (("arithmetic", arithmetic), ("geometric", geometric)):
                loss = -own.gather(1, labels[:, None])[:, 0]
                found[kind].append(np.stack([(own.argmax(dim=1) == labels).double().numpy(), loss.numpy()]))
    return {
        kind: dict(zip(("accuracy", "cross_entropy"), np.concatenate(own, axis=1).mean(axis=1).tolist(), strict=True))
        for kind, own in found.items()
    }


def figures(scores: Scores) -> dict[str, float]:
    found = measures.figures(scores)
    return {name: found[name] for name in FIGURES}


def summary(scores: dict[str, Scores], members: list[Scores], documents: np.ndarray) -> dict[str, Any]:
    arms = {arm: [own for name, own in scores.items() if name.startswith(arm)] for arm in ("student", "baseline")}
    groups = {"member": members, ENSEMBLE: [scores[ENSEMBLE]], **arms}
    of = {name: [figures(one) for one in own] for name, own in groups.items()}
    right = {name: np.stack([by_document(one, documents) for one in own]) for name, own in groups.items()}
    _, positions = np.unique(documents, return_counts=True)
    return {
        "documents": len(positions), "positions": len(documents),
        "models": {name: {key: mean_and_sd([one[key] for one in own]) for key in FIGURES} for name, own in of.items()},
        "transferred_share": share(right["student"], right["baseline"], right[ENSEMBLE], positions),
        "of_members": share(right["student"], right["member"], right[ENSEMBLE], positions),
    }  # fmt: skip


def by_document(scores: Scores, documents: np.ndarray) -> np.ndarray:
    """[documents]: how many positions of each are right."""
    _, place = np.unique(documents, return_inverse=True)
    return np.bincount(place, scores.correct)


def share(student: np.ndarray, other: np.ndarray, ensemble: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
    """(student - other) / (ensemble - other) of the mean accuracies. Each [models, documents]: right positions.

    The interval, 95%: documents are resampled, the same for all models, and so are students and others, not the
    ensemble. Where a resampled ensemble has no gain, the share is an end of the interval.
    """
    drawn = np.random.default_rng(0)
    weights = drawn.multinomial(len(positions), np.full(len(positions), 1 / len(positions)), RESAMPLES)

    def accuracies(right: np.ndarray, seeds: bool) -> np.ndarray:
        """[resamples]"""
        own = weights @ right.T / (weights @ positions)[:, None]
        count = len(right)
        chosen = drawn.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count if seeds else 1 / count
        return (own * chosen).sum(axis=1)

    whole = [right.sum() / len(right) / positions.sum() for right in (student, other, ensemble)]
    own, base, best = accuracies(student, True), accuracies(other, True), accuracies(ensemble, False)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(best > base, (own - base) / (best - base), np.where(own > base, np.inf, -np.inf))
    low, high = np.quantile(shares, [0.025, 0.975], method="inverted_cdf")
    return {"share": (whole[0] - whole[1]) / (whole[2] - whole[1]), "interval": [float(low), float(high)]}


def show(report: dict[str, Any]) -> None:
    for row in report["development_by_temperature"]:
        print(f"T = {row['temperature']:<4g} development accuracy {row['accuracy']:.4f}")
    for row in report["development_by_length"]:
        said = ", ".join(f"{arm} {row[arm]['accuracy']:.4f}" for arm in ("student", "baseline"))
        print(f"{row['steps']} steps: development accuracy {said}")
    for kind, own in report["means"].items():
        print(f"{kind} mean: development accuracy {own['accuracy']:.4f}, cross-entropy {own['cross_entropy']:.4f}")
    for split in ("development", "held_out"):
        own = report[split]
        print(f"{split}: {own['documents']} documents, {own['positions']:,} positions")
        for name, of in own["models"].items():
            said = "  ".join(f"{key} {of[key]['mean']:.4f} ({of[key]['sd']:.4f})" for key in FIGURES)
            print(f"  {name:<10}{said}")
        for key in ("transferred_share", "of_members"):
            low, high = own[key]["interval"]
            print(f"  {key} {own[key]['share']:.2f} [{low:.2f}, {high:.2f}]")


def plot(report: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, models = report["development_by_temperature"], report["development"]["models"]
    figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
    temperatures = [row["temperature"] for row in rows]
    axes.plot(temperatures, [100 * row["accuracy"] for row in rows], marker="o", label="student, one seed")
    lines = {
        ENSEMBLE: ("ensemble of ten", ":"),
        "member": ("one member, mean of ten", "--"),
        "baseline": ("baseline", "-."),
    }
    for name, (title, style) in lines.items():
        axes.axhline(100 * models[name]["accuracy"]["mean"], color="0.4", linestyle=style, label=title)
    axes.set(xlabel="temperature", ylabel="frame accuracy on development data, %", xscale="log")
    axes.set_xticks(temperatures, [f"{T:g}" for T in temperatures])
    axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
