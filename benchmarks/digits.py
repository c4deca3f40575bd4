"""What soft targets carry where labels cannot be trusted: heavy views, wrong labels, and a class that nobody showed.

    python benchmarks/digits.py [--seeds 5] [--noisy-seeds N] [--noise 0 0.1 0.2 0.4] [--steps N] [--workdir FOLDER]

For each seed, a split of its own and a teacher of its training images; then three students of one network and one
number of steps: `soft` on heavy views with alpha 1, `hard` on the same views with the label that the image had, `plain`
on the images as they are; hard and plain for each share of wrong training labels, soft once, since it reads none. With
`--noisy-seeds` shares above 0 and the class left out are of the first so many seeds, and each row says how many it has.
Accuracy, negative log-likelihood in nats and calibration error are of held-out images. A difference is of the same
images under the same seed; its 95% interval is of resampled seeds and images. `left out`: a class of which no view is
trained on (Hinton, Vinyals and Dean, 2015, section 3), and the share of its held-out images that the soft student gives
that class, as it is and with the class's bias raised to what is best on development images. `--plot FILE` draws
accuracy and calibration error by label noise. What is trained already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import forked_training
import numpy as np
import torch
from over_seeds import mean_and_sd

from distributed_kd import __version__, stages
from distributed_kd.corpus.batch import collate
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.launch.ray_session import ray_session
from distributed_kd.models.load import load_model
from distributed_kd.recipe import Recipe, load
from distributed_kd.store.filesystem import Store

RECIPE, TEACHER = "recipes/augmented-digits.yaml", "recipes/digits-teacher.yaml"
STUDENTS = ("soft", "hard", "plain")
FIRST_SEED = 200  # the regime was chosen on splits of other seeds
LEFT_OUT, BINS, RESAMPLES = 3, 15, 10_000
BIASES = np.linspace(0.0, 10.0, 101)


class Answers(NamedTuple):
    """Of n images: which they are, [n, C] log-probabilities, [n] labels."""

    images: np.ndarray
    log_p: np.ndarray
    labels: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--noisy-seeds", type=int, help="seeds with wrong labels and a class left out; all when not given"
    )
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.4])
    parser.add_argument("--steps", type=int, help="of the three students; the recipe's when not given")
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits/benchmark"))
    parser.add_argument("--plot", type=Path, help="a PNG of accuracy and calibration error by label noise")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    begun = time.monotonic()
    forked_training.set_up()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    noisy = seeds if options.noisy_seeds is None else seeds[: options.noisy_seeds]
    with ray_session(None):
        found = [
            one_seed(options.workdir / f"seed-{seed}", seed, options.noise, options.steps, seed in noisy)
            for seed in seeds
        ]
    rows = [row_of(noise, [own | own[f"{noise:g}"] for own in found if f"{noise:g}" in own]) for noise in options.noise]
    less = [own["left_out"] for own in found if "left_out" in own]
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"distributed_kd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "seeds": list(seeds), "steps": options.steps or load(RECIPE).trainer.steps,
        "seconds": time.monotonic() - begun,
        "images": {"train": [own["trained"] for own in found], "held_out": [len(own["soft"].images) for own in found]},
        "teacher": metrics_of([own["teacher"] for own in found]),
        "left_out": {"class": LEFT_OUT, "seeds": len(less), **{
            name: mean_and_sd([own[name] for own in less]) for name in less[0]
        }},
        "rows": rows,
    }  # fmt: skip
    if options.plot:
        plot(rows, report["teacher"], options.plot)
    print(json.dumps(report)) if options.json else show(report)


def one_seed(workdir: Path, seed: int, noises: list[float], steps: int | None, is_noisy: bool) -> dict[str, Any]:
    """What each student answers to the held-out images, hard and plain by label noise; of the teacher the same.

    Where the seed is not a noisy one, without wrong labels alone, and no class is left out.
    """
    common = [f"corpus.seed={seed}", f"trainer.seed={seed}"]
    teacher = trained(TEACHER, [*common, f"workdir={workdir}/teacher"])
    own = [*common, "baseline=off", *([] if steps is None else [f"trainer.steps={steps}"])]
    taught = [*own, f"teachers=[{{model: {workdir}/teacher/student/export}}]"]
    labelled = [*own, "teachers=[]", "objective.alpha=0"]
    soft = trained(RECIPE, [*taught, f"workdir={workdir}/soft"])
    held_out = Sequences.of(teacher)
    found: dict[str, Any] = {
        "teacher": answers(teacher, held_out), "soft": answers(soft, held_out),
        "trained": held_out.manifest.splits["train"].documents,
    }  # fmt: skip
    for noise in noises if is_noisy else [0.0]:
        noisy = [*labelled, f"corpus.label_noise={noise}"]
        hard = trained(RECIPE, [*noisy, f"workdir={workdir}/hard-{noise:g}"])
        plain = trained(RECIPE, [*noisy, f"workdir={workdir}/plain-{noise:g}", "corpus.augment=[]", "corpus.views=1"])
        found[f"{noise:g}"] = {"hard": answers(hard, held_out), "plain": answers(plain, held_out)}
    if not is_noisy:
        return found
    less = trained(RECIPE, [*taught, f"workdir={workdir}/left-out", f"corpus.without_classes=[{LEFT_OUT}]"])
    found["left_out"] = left_out(answers(less, held_out), answers(less, held_out, "development"))
    return found


def trained(file: str, overrides: list[str]) -> Recipe:
    recipe = load(file, overrides)
    stages.prepare(recipe)
    if recipe.teachers:
        stages.cache(recipe)
    forked_training.train(file, overrides)
    return recipe


@torch.no_grad()
def answers(recipe: Recipe, held_out: Sequences, split: str = "validation") -> Answers:
    """The student's, to the split's images in order."""
    model = load_model(Path(Store(recipe.workdir).path("student/export")), torch.float32, torch.device("cpu"))
    sequences = [one for entry in held_out.shards(split) for one in held_out.read(entry.shard)]
    batch = collate(sequences)
    assert batch.features is not None
    log_p = model(torch.from_numpy(batch.features)).logits[:, 0].log_softmax(dim=1)
    return Answers(np.array([one.documents[0] for one in sequences]), log_p.double().numpy(), batch.labels[:, 0])


def left_out(validation: Answers, development: Answers) -> dict[str, float]:
    """The share of the class's images given it, of all images that are right, and both with the bias raised."""
    right = [float((raised(development.log_p, bias) == development.labels).mean()) for bias in BIASES]
    bias = float(BIASES[int(np.argmax(right))])
    found = {"bias": bias}
    for name, own in (("", 0.0), ("_raised", bias)):
        is_right = raised(validation.log_p, own) == validation.labels
        found[f"recalled{name}"] = float(is_right[validation.labels == LEFT_OUT].mean())
        found[f"accuracy{name}"] = float(is_right.mean())
    return found


def raised(log_p: np.ndarray, bias: float) -> np.ndarray:
    """[n] classes."""
    return (log_p + bias * (np.arange(log_p.shape[1]) == LEFT_OUT)).argmax(axis=1)


# A metric is of an answer to n images and of [R, n] weights, how often each image is drawn: [R].


def accuracy(own: Answers, weights: np.ndarray) -> np.ndarray:
    return mean_of(own.log_p.argmax(axis=1) == own.labels, weights)


def nll(own: Answers, weights: np.ndarray) -> np.ndarray:
    return mean_of(-own.log_p[np.arange(len(own.labels)), own.labels], weights)


def ece(own: Answers, weights: np.ndarray) -> np.ndarray:
    confidence = np.exp(own.log_p.max(axis=1))
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = (confidence - (own.log_p.argmax(axis=1) == own.labels))[:, None] * (bins[:, None] == np.arange(BINS))
    return np.abs(mean_of(gaps, weights)).sum(axis=1)


def mean_of(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (weights @ values.astype(float)) / weights.sum(axis=1).reshape(-1, *[1] * (values.ndim - 1))


METRICS: dict[str, Callable[[Answers, np.ndarray], np.ndarray]] = {"accuracy": accuracy, "nll": nll, "ece": ece}


def row_of(noise: float, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"label_noise": noise, "seeds": len(seeds)}
    row |= {name: metrics_of([own[name] for own in seeds]) for name in STUDENTS}
    for other in ("hard", "plain"):
        row[f"soft - {other}"] = differences([own["soft"] for own in seeds], [own[other] for own in seeds])
    return row


def metrics_of(seeds: list[Answers]) -> dict[str, dict[str, float]]:
    return {name: mean_and_sd([float(metric(own, once(own))[0]) for own in seeds]) for name, metric in METRICS.items()}


def differences(mine: list[Answers], others: list[Answers]) -> dict[str, dict[str, Any]]:
    """By metric. An image that is held out under several seeds is drawn, or not, under all of them."""
    drawn = np.random.default_rng(0)
    every = np.unique(np.concatenate([own.images for own in mine]))
    times = drawn.multinomial(len(every), np.full(len(every), 1 / len(every)), RESAMPLES).astype(float)
    seeds = drawn.integers(0, len(mine), (RESAMPLES, len(mine)))
    found = {}
    for name, metric in METRICS.items():
        pairs = list(zip(mine, others, strict=True))
        means = [float(metric(one, once(one))[0] - metric(other, once(other))[0]) for one, other in pairs]
        weights = [times[:, np.searchsorted(every, one.images)] for one, _ in pairs]
        by_seed = np.stack([metric(*one) - metric(*other) for one, other in (
            ((one, own), (other, own)) for (one, other), own in zip(pairs, weights, strict=True)
        )], axis=1)  # fmt: skip
        resampled = np.take_along_axis(by_seed, seeds, axis=1).mean(axis=1)
        edges = [float(edge) for edge in np.quantile(resampled, [0.025, 0.975])]
        found[name] = {"difference": float(np.mean(means)), "interval": edges, "by_seed": means}
    return found


def once(own: Answers) -> np.ndarray:
    return np.ones((1, len(own.labels)))


def show(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; {len(report['seeds'])} seeds, {report['steps']} steps, {report['seconds']:.0f} s")
    left = {name: own["mean"] for name, own in report["left_out"].items() if name not in ("class", "seeds")}
    print(
        f"teacher {report['teacher']['accuracy']['mean']:.3f}; class {LEFT_OUT} never shown: {left['recalled']:.3f}, "
        f"with its bias raised by {left['bias']:.1f} {left['recalled_raised']:.3f}"
    )
    for name in METRICS:
        students = "".join(f"{student:>8}" for student in STUDENTS)
        print(f"{name:>8}{'seeds':>6}{students}{'soft - hard':>27}{'soft - plain':>27}")
        for row in report["rows"]:
            own = "".join(f"{row[student][name]['mean']:8.3f}" for student in STUDENTS)
            for other in ("hard", "plain"):
                found = row[f"soft - {other}"][name]
                low, high = found["interval"]
                own += f"{found['difference']:+10.3f} [{low:+.3f}, {high:+.3f}]".rjust(27)
            print(f"{row['label_noise']:8.2f}{row['seeds']:6}{own}")


def plot(rows: list[dict[str, Any]], teacher: dict[str, dict[str, float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {
        "soft": "soft targets on heavy views (alpha 1)", "hard": "labels on the same views",
        "plain": "labels, images as they are",
    }  # fmt: skip
    panels = {"accuracy": "held-out accuracy, %", "ece": "calibration error, points"}
    figure, both = pyplot.subplots(1, 2, figsize=(9.6, 4.4), layout="constrained")
    noise = [100 * row["label_noise"] for row in rows]
    for axes, (metric, title) in zip(both, panels.items(), strict=True):
        for name in STUDENTS:
            means, sds = ([100 * row[name][metric][key] for row in rows] for key in ("mean", "sd"))
            axes.errorbar(noise, means, yerr=sds, marker="o", capsize=3, label=titles[name])
        axes.axhline(
            100 * teacher[metric]["mean"], color="0.5", linestyle=":", label="teacher, trained on right labels"
        )
        axes.set(xlabel="wrong training labels, %", ylabel=title)
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
