"""The comparison in words that follow from the numbers alone: what stands before the tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distributed_kd.evaluate.figures import figure_of
from distributed_kd.evaluate.page.comparison import UNCLEAR, Comparison, Outcome, comparisons_of
from distributed_kd.evaluate.page.retention import interval_of
from distributed_kd.evaluate.words import MINUS, count, is_number, listed, percent, plain, ratio

JUDGED = ("cross_entropy", "kl_from_teacher", "agreement")

# Below these, a sentence says how far the numbers carry.
FEW_POSITIONS = 10_000_000
FEW_DOCUMENTS = 20


@dataclass(frozen=True)
class Verdict:
    headline: str
    comparisons: list[Comparison]
    sentences: list[str]


def verdict(report: dict[str, Any]) -> Verdict:
    """Headline, the three comparisons behind it, and what else is to be said before the tables."""
    found = report.get("differences", {})
    comparisons = comparisons_of(report, {key: found[key] for key in JUDGED if key in found})
    if comparisons:
        headline = _headline(comparisons)
        sentences = [f"{_documents(report)} {_how_compared(report)}".strip(), _kept(report)]
    else:
        headline = _headline_alone(report)
        alone = "No baseline was trained, so nothing here says what the soft targets added over hard labels."
        if not is_distilled(report):
            alone = "It has no teacher: nothing was distilled."
        sentences = [_against_teacher(report), _kept(report, with_accuracy=False), alone]
    return Verdict(headline, comparisons, [text for text in [*sentences, _scale(report)] if text])


def _headline(comparisons: list[Comparison]) -> str:
    def named(which: Outcome, last: str) -> str:
        return listed([row.figure.title for row in comparisons if row.outcome == which], last)

    better, worse, unclear = named("better", "and"), named("worse", "and"), named(UNCLEAR, "or")
    other = "the same student trained on hard labels alone"
    if not worse and not unclear:
        return f"The distilled student is better than {other}."
    if not better and not unclear:
        return f"The distilled student is worse than {other}."
    if not better and not worse:
        return f"The distilled student cannot be told apart from {other}."
    said = [f"is better in {better}"] * bool(better) + [f"is worse in {worse}"] * bool(worse)
    said += [f"cannot be told apart in {unclear}"] * bool(unclear)
    return f"Against {other}, the distilled student {listed(said, 'and')}."


def is_distilled(report: dict[str, Any]) -> bool:
    return "teacher" in report["models"]


def _headline_alone(report: dict[str, Any]) -> str:
    if not is_distilled(report):
        accuracy = percent(report["models"].get("student", {}).get("accuracy"))
        return f"Trained on hard labels alone, the student is right in {accuracy} of held-out positions."
    retention = percent(report.get("retention"))
    interval = f" (95%: {' to '.join(edges)})" if (edges := interval_of(report)) else ""
    return f"The distilled student\u2019s accuracy is {retention} of the teacher\u2019s{interval}."


def _documents(report: dict[str, Any]) -> str:
    won, documents = report.get("documents_won"), report.get("held_out", {}).get("documents")
    if won is None or documents is None:
        return ""
    text = f"The student has the lower cross-entropy in {won:,} of {documents:,} held-out documents."
    if documents < FEW_DOCUMENTS:
        text += " The intervals rest on so few documents that they are likely too narrow."
    return text


def _how_compared(report: dict[str, Any]) -> str:
    """Where the arms differ besides the labels, the reader must know before believing the comparison."""
    recipe = report.get("recipe", {})
    trainer = recipe.get("trainer", {})
    said = {key: value for key, value in (recipe.get("baseline") or {}).items() if value is not None}
    differing = [
        f"{key.replace('_', ' ')} {plain(value)} where the student has {plain(trainer.get(key))}"
        for key, value in said.items()
        if value != trainer.get(key)
    ]
    text = "Both start from the same weights and see the same sequences in the same order for as many steps"
    return f"{text}; the baseline has {listed(differing, 'and')}." if differing else f"{text}."


def _kept(report: dict[str, Any], with_accuracy: bool = True) -> str:
    """Accuracy, size and speed as shares of the teacher's."""
    teacher, student = (report["models"].get(name, {}) for name in ("teacher", "student"))
    said = []
    accuracy = ""
    if with_accuracy and is_number(report.get("retention")):
        best = report["models"].get("ensemble", teacher)
        other = ratio(report["models"].get("baseline", {}).get("accuracy"), best.get("accuracy"))
        asides = [f"95%: {' to '.join(edges)}"] if (edges := interval_of(report)) else []
        asides += [f"the baseline\u2019s: {percent(other)}"] if other else []
        aside = f" ({'; '.join(asides)})" if asides else ""
        whose = "ensemble" if "ensemble" in report["models"] else "teacher"
        accuracy = f"The student\u2019s accuracy is {percent(report['retention'])} of the {whose}\u2019s{aside}. "
    accuracy += _transferred(report)
    size = ratio(student.get("parameters"), teacher.get("parameters"))
    if size:
        counts = f"{count(student['parameters'])} of {count(teacher['parameters'])}"
        said.append(f"has {percent(size)} of the teacher\u2019s parameters ({counts})")
    speed = ratio(student.get("positions_per_second"), teacher.get("positions_per_second"))
    if speed:
        said.append(f"scored {speed:.2f} times as many positions a second")
    return accuracy + (f"{'It' if accuracy else 'The student'} {listed(said, 'and')}." if said else "")


def _transferred(report: dict[str, Any]) -> str:
    share, edges = report.get("transferred_share"), report.get("transferred_share_interval") or []
    if not is_number(share) or not all(is_number(edge) for edge in edges):
        return ""
    low, high = (percent(edge).replace("-", MINUS) for edge in edges)
    count = len(report.get("members", [])) or "its"
    return (
        f"Of what the mean of {count} teachers gains in accuracy over the baseline, it has "
        f"{percent(share).replace('-', MINUS)} (95%: {low} to {high}). "
    )


def _against_teacher(report: dict[str, Any]) -> str:
    teacher, student = (report["models"].get(name, {}) for name in ("teacher", "student"))
    said = []
    if "cross_entropy" in student and "cross_entropy" in teacher:
        figure = figure_of("cross_entropy")
        values = f"{figure.value(student['cross_entropy'])} against {figure.value(teacher['cross_entropy'])}"
        said.append(f"its held-out cross-entropy is {values}")
    if "kl_from_teacher" in student:
        said.append(f"its KL from the teacher is {figure_of('kl_from_teacher').value(student['kl_from_teacher'])}")
    if "agreement" in student:
        said.append(f"its first choice is the teacher\u2019s in {percent(student['agreement'])} of positions")
    text = listed(said, "and")
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _scale(report: dict[str, Any]) -> str:
    """How much was trained on, and what that means for the gap."""
    positions, passes = report.get("cache", {}).get("positions"), _passes(report)
    if not positions or not passes:
        return ""
    times = "once" if passes == 1 else f"{passes:,.3g} times"
    text = f"The student was trained on {positions:,} positions, {times} each"
    if positions >= FEW_POSITIONS:
        return f"{text}."
    if not report.get("differences"):
        return f"{text}: with so few, a student usually keeps less of its teacher than it would with more data."
    return (
        f"{text}: with so few, a gap to the baseline mostly shows how much more a soft target says than a label, "
        "and tends to shrink with more data."
    )


def _passes(report: dict[str, Any]) -> float | None:
    trainer = report.get("recipe", {}).get("trainer", {})
    if trainer.get("epochs"):
        return float(trainer["epochs"])
    return ratio(
        (trainer.get("steps") or 0) * (trainer.get("global_batch") or 0), report.get("cache", {}).get("sequences")
    )
