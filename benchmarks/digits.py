"""What soft targets carry where labels cannot be trusted: heavy views, wrong labels, and a class that nobody showed.

    python benchmarks/digits.py [--seeds 5] [--noise 0 0.1 0.2 0.4] [--steps 4000] [--workdir FOLDER] [--json]

For each seed, a split of its own and a teacher of its training images; then for each share of wrong training labels
three students of one network and one number of steps: `soft` on heavy views with alpha 1, `hard` on the same views with
the label that the image had, `plain` on the images as they are. Accuracy and calibration error are of held-out images.
A difference is of the same images under the same seed; its interval is of resampled seeds and images. `left out`: a
class of which no view is trained on (Hinton, Vinyals and Dean, 2015, section 3), and the share of its held-out images
that the soft student gives that class. `--plot FILE` draws accuracy by label noise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distributed_kd import __version__, stages
from distributed_kd.corpus.batch import collate
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.launch.ray_session import ray_session
from distributed_kd.models.load import load_model
from distributed_kd.recipe import Recipe, load
from distributed_kd.store.filesystem import Store

RECIPE, TEACHER = "recipes/augmented-digits.yaml", "recipes/digits-teacher.yaml"
STUDENTS = ("soft", "hard", "plain")
LEFT_OUT, BINS, RESAMPLES = 3, 15, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.4])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits/benchmark"))
    parser.add_argument("--plot", type=Path, help="a PNG of accuracy by label noise")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    begun = time.monotonic()
    with ray_session(None):
        found = [
            one_seed(options.workdir / f"seed-{seed}", seed, options.noise, options.steps)
            for seed in range(options.seeds)
        ]
    rows = [row_of(noise, [own[f"{noise:g}"] for own in found]) for noise in options.noise]
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"distributed_kd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "seeds": options.seeds, "steps": options.steps, "seconds": time.monotonic() - begun,
        "teacher": mean_and_sd([own["teacher"].mean() for own in found]),
        "left_out": {"class": LEFT_OUT, "recalled": mean_and_sd([own["left_out"].mean() for own in found])},
        "rows": rows,
    }  # fmt: skip
    if options.plot:
        plot(rows, report["teacher"]["mean"], options.plot)
    print(json.dumps(report)) if options.json else show(report)


def one_seed(workdir: Path, seed: int, noises: list[float], steps: int) -> dict[str, Any]:
    """By label noise, which held-out images each student has right and how sure it was; of the teacher the same."""
    common = [f"corpus.seed={seed}", f"trainer.seed={seed}", f"trainer.steps={steps}"]
    teacher = load(TEACHER, [*common, f"workdir={workdir}/teacher"])
    stages.prepare(teacher)
    stages.train(teacher)
    held_out = Sequences.of(teacher)
    weights = f"teachers=[{{model: {workdir}/teacher/student/export}}]"
    found: dict[str, Any] = {"teacher": judged(teacher, "student", held_out)[0]}
    for noise in noises:
        own = [*common, weights, f"corpus.label_noise={noise}"]
        viewed = trained([*own, f"workdir={workdir}/noise-{noise:g}"])
        plain = trained([
            *own, f"workdir={workdir}/plain-{noise:g}", "teachers=[]", "objective.alpha=0", "baseline=off",
            "corpus.augment=[]", "corpus.views=1",
        ])  # fmt: skip
        of = {"soft": (viewed, "student"), "hard": (viewed, "baseline"), "plain": (plain, "student")}
        found[f"{noise:g}"] = {name: judged(recipe, arm, held_out) for name, (recipe, arm) in of.items()}
    less = [*common, weights, f"corpus.without_classes=[{LEFT_OUT}]", f"workdir={workdir}/left-out", "baseline=off"]
    right, _, labels = judged(trained(less), "student", held_out)
    found["left_out"] = right[labels == LEFT_OUT]
    return found


def trained(overrides: list[str]) -> Recipe:
    recipe = load(RECIPE, overrides)
    stages.prepare(recipe)
    if recipe.teachers:
        stages.cache(recipe)
    stages.train(recipe)
    return recipe


@torch.no_grad()
def judged(recipe: Recipe, arm: str, held_out: Sequences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[images] each: whether it is right (1 or 0), its confidence, the label. Of the validation split, in order."""
    model = load_model(Path(Store(recipe.workdir).path(f"{arm}/export")), torch.float32, torch.device("cpu"))
    batch = collate([one for entry in held_out.shards("validation") for one in held_out.read(entry.shard)])
    assert batch.features is not None
    confidence, best = model(torch.from_numpy(batch.features)).logits[:, 0].softmax(dim=1).max(dim=1)
    labels = batch.labels[:, 0]
    return (best.numpy() == labels).astype(float), confidence.numpy(), labels


def row_of(noise: float, seeds: list[dict[str, tuple[np.ndarray, ...]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"label_noise": noise}
    for name in STUDENTS:
        row[name] = {
            "accuracy": mean_and_sd([own[name][0].mean() for own in seeds]),
            "ece": mean_and_sd([calibration_error(*own[name][:2]) for own in seeds]),
        }
    for other in ("hard", "plain"):
        differences = [own["soft"][0] - own[other][0] for own in seeds]
        row[f"soft - {other}"] = {
            "difference": float(np.mean([one.mean() for one in differences])),
            "interval": interval(differences),
        }
    return row


def interval(differences: list[np.ndarray]) -> list[float]:
    """95%: seeds are drawn, and of each the images."""
    drawn = np.random.default_rng(0)
    seeds = drawn.integers(0, len(differences), (RESAMPLES, len(differences)))
    means = np.empty(seeds.shape)
    for seed, own in enumerate(differences):
        at = seeds == seed
        means[at] = [own[drawn.integers(0, len(own), len(own))].mean() for _ in range(int(at.sum()))]
    return [float(edge) for edge in np.quantile(means.mean(axis=1), [0.025, 0.975])]


def calibration_error(right: np.ndarray, confidence: np.ndarray) -> float:
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence, BINS) - np.bincount(bins, right, BINS)
    return float(np.abs(gaps).sum() / len(right))


def mean_and_sd(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}


def show(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; {report['seeds']} seeds, {report['steps']} steps each, {report['seconds']:.0f} s")
    recalled = report["left_out"]["recalled"]["mean"]
    print(f"teacher {report['teacher']['mean']:.3f}; class {LEFT_OUT} never shown: {recalled:.3f}")
    print(
        f"{'noise':>6}"
        + "".join(f"{name:>8}{'ece':>7}" for name in STUDENTS)
        + f"{'soft - hard':>26}{'soft - plain':>26}"
    )
    for row in report["rows"]:
        own = "".join(f"{row[name]['accuracy']['mean']:8.3f}{row[name]['ece']['mean']:7.3f}" for name in STUDENTS)
        said = ""
        for other in ("hard", "plain"):
            found = row[f"soft - {other}"]
            low, high = found["interval"]
            said += f"{found['difference']:+10.3f} [{low:+.3f}, {high:+.3f}]".rjust(26)
        print(f"{row['label_noise']:6.2f}{own}{said}")


def plot(rows: list[dict[str, Any]], teacher: float, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {
        "soft": "soft targets on heavy views (alpha 1)", "hard": "labels on the same views",
        "plain": "labels, images as they are",
    }  # fmt: skip
    figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
    noise = [100 * row["label_noise"] for row in rows]
    for name, title in titles.items():
        means, sds = ([100 * row[name]["accuracy"][key] for row in rows] for key in ("mean", "sd"))
        axes.errorbar(noise, means, yerr=sds, marker="o", capsize=3, label=title)
    axes.axhline(100 * teacher, color="0.5", linestyle=":", label="teacher, trained on right labels")
    axes.set(xlabel="wrong training labels, %", ylabel="held-out accuracy, %")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
