"""From scored positions to the report's figures, with paired bootstrap intervals over documents.

Every figure is a function of sums over positions, and sums add up over documents: a resample of the documents is a
row of counts, so all resamples are one matrix product. Documents are resampled, not positions, since positions of
one document are not independent; both models see the same resample, so what they share cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distributed_kd.evaluate.scores import Scores

CALIBRATION_BINS = 15
ENTROPY_BINS = 10
FIGURES = ("cross_entropy", "perplexity", "kl_from_teacher", "agreement", "accuracy", "ece")
_MEANS = ("positions", "cross_entropy", "kl_from_teacher", "agreement", "accuracy")


def figures(scores: Scores) -> dict[str, Any]:
    """What `report.json` says of a model; without a teacher nothing that takes one."""
    sums = document_sums(scores, np.zeros(len(scores.correct), np.int64)).sum(axis=0, keepdims=True)
    positions = len(scores.correct)
    return {
        **{name: float(value[0]) for name, value in _figures(sums).items() if not np.isnan(value[0])},
        "parameters": scores.parameters,
        "positions_per_second": positions / scores.seconds,
    }


def differences(
    students: Sequence[Scores], baselines: Sequence[Scores], documents: np.ndarray, resamples: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Student minus baseline for each figure: its mean over pairs and the 95% percentile interval.

    `documents` [positions] names the document of each position. A pair is of one seed of the training. Documents are
    resampled, the same for all pairs, and so are the pairs where there are several.
    """
    sums = [
        (document_sums(student, documents), document_sums(baseline, documents))
        for student, baseline in zip(students, baselines, strict=True)
    ]
    count, pairs = len(sums[0][0]), len(sums)
    weights = _resampled(count, resamples, seed)
    chosen = _resampled(pairs, resamples, seed + 1) / pairs
    drawn = [_difference(weights @ own, weights @ other) for own, other in sums]
    whole = np.ones((1, count))
    values = [_difference(whole @ own, whole @ other) for own, other in sums]
    found = {}
    for name in FIGURES:
        resampled = sum(chosen[:, pair] * own[name] for pair, own in enumerate(drawn))
        found[name] = {
            "difference": float(np.mean([own[name] for own in values])),
            "interval": [float(edge) for edge in np.quantile(resampled, [0.025, 0.975])],
        }
    return found


def retention(
    student: Scores, teacher: Scores, documents: np.ndarray, resamples: int, seed: int = 0
) -> tuple[float, list[float]] | None:
    """The student's accuracy over the teacher's, and its 95% interval; None where the teacher is right nowhere.

    A resample in which it is right nowhere is left out.
    """
    own, other = document_sums(student, documents), document_sums(teacher, documents)
    if not _accuracy(other.sum(axis=0)):
        return None
    weights = _resampled(len(own), resamples, seed)
    right = _accuracy(weights @ other)
    drawn = _accuracy(weights @ own)[right > 0] / right[right > 0]
    value = _accuracy(own.sum(axis=0)) / _accuracy(other.sum(axis=0))
    return float(value), [float(edge) for edge in np.quantile(drawn, [0.025, 0.975])]


def transferred_share(
    student: Scores, baseline: Scores, ensemble: Scores, documents: np.ndarray, resamples: int, seed: int = 0
) -> tuple[float, list[float]] | None:
    """How much of the ensemble's gain in accuracy over the baseline the student has, and its 95% interval.

    (student - baseline) / (ensemble - baseline), as Hinton, Vinyals and Dean (2015) have it. None where the ensemble
    has no gain; where it has none in a resample, that one counts as an end of the interval.
    """
    own, base, best = (document_sums(one, documents) for one in (student, baseline, ensemble))
    if _accuracy(best.sum(axis=0)) <= _accuracy(base.sum(axis=0)):
        return None
    weights = _resampled(len(own), resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, drawn = (
            (_accuracy(rows @ own) - _accuracy(rows @ base)) / (_accuracy(rows @ best) - _accuracy(rows @ base))
            for rows in (np.ones(len(own)), weights)
        )
    edges = np.nanquantile(drawn, [0.025, 0.975])
    return float(value), [float(edge) for edge in edges]


def _accuracy(sums: np.ndarray) -> np.ndarray:
    return sums[..., _MEANS.index("accuracy")] / sums[..., 0]


def _resampled(count: int, resamples: int, seed: int) -> np.ndarray:
    """[resamples, count]: how often each document is in a resample."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=resamples)


def documents_won(student: Scores, baseline: Scores, documents: np.ndarray) -> int:
    """In how many documents the student has the lower cross-entropy."""
    column = _MEANS.index("cross_entropy")
    own, other = document_sums(student, documents), document_sums(baseline, documents)
    return int((own[:, column] < other[:, column]).sum())


def calibration(scores: Scores) -> list[dict[str, float]]:
    """The bins behind `ece` that hold any position: mean confidence, accuracy, positions."""
    bins = _bins(document_sums(scores, np.zeros(len(scores.correct), np.int64)))[:, 0]
    return [
        {"confidence": confidence / n, "accuracy": correct / n, "positions": n}
        for n, confidence, correct in bins.T
        if n
    ]


def by_teacher_entropy(arms: dict[str, Scores], entropy: np.ndarray) -> list[dict[str, Any]]:
    """Agreement and KL of each arm where the teacher is certain, and where it is not.

    entropy [positions]: the teacher's, in nats. The bins hold about as many positions each; where so many have the same
    entropy that two bins were one, there are fewer.
    """
    edges = np.unique(np.quantile(entropy, np.linspace(0.0, 1.0, ENTROPY_BINS + 1)))
    places = np.clip(np.searchsorted(edges, entropy, side="right") - 1, 0, max(0, len(edges) - 2))
    rows = []
    for place in np.unique(places):
        here = places == place
        means = {
            name: {
                "agreement": float(own.agrees[here].mean()),
                "kl_from_teacher": float(own.kl_from_teacher[here].mean()),
            }
            for name, own in arms.items()
        }
        interval = [float(entropy[here].min()), float(entropy[here].max())]
        rows.append(
            {"entropy": interval, "mean": float(entropy[here].mean()), "positions": int(here.sum())} | {"models": means}
        )
    return rows


def document_sums(scores: Scores, documents: np.ndarray) -> np.ndarray:
    """[documents, columns]: sums of `_MEANS`, then of each calibration bin: positions, confidence, correct."""
    _, place = np.unique(documents, return_inverse=True)
    count = int(place.max()) + 1
    bins = np.minimum((scores.confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)

    def by_document(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values, minlength=count)[:, None]

    def by_bin(values: np.ndarray) -> np.ndarray:
        cells = np.bincount(place * CALIBRATION_BINS + bins, values, minlength=count * CALIBRATION_BINS)
        return cells.reshape(count, CALIBRATION_BINS)

    ones = np.ones(len(bins))
    means = (ones, scores.cross_entropy, scores.kl_from_teacher, scores.agrees, scores.correct)
    return np.concatenate(
        [by_document(values.astype(np.float64)) for values in means]
        + [by_bin(values.astype(np.float64)) for values in (ones, scores.confidence, scores.correct)],
        axis=1,
    )


def _bins(sums: np.ndarray) -> np.ndarray:
    """[3, rows, bins]: positions, confidence and correct of each bin."""
    return np.stack(np.split(sums[:, len(_MEANS) :], 3, axis=1))


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of sums to rows of figures."""
    positions = sums[:, 0]
    means = {name: sums[:, column] / positions for column, name in enumerate(_MEANS) if column}
    _, confidence, correct = _bins(sums)
    return {
        **means,
        "perplexity": np.exp(means["cross_entropy"]),
        "ece": np.abs(confidence - correct).sum(axis=1) / positions,
    }


def _difference(own: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
    first, second = _figures(own), _figures(other)
    return {name: first[name] - second[name] for name in FIGURES}
