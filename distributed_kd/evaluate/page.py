"""`report.html`: the report as one page that asks for nothing outside itself.

`render` turns the facts into what the template shows; `verdict` puts the comparison into words that follow from the
numbers alone. Nothing here computes a result: what the page says stands in `report.json`, or is a ratio of two
numbers that do. A field that this version does not know is shown by its name, one that is absent is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml
from jinja2 import Environment, StrictUndefined

from distributed_kd import __version__
from distributed_kd.evaluate import plots

Outcome = Literal["better", "worse", "cannot be told apart"]
Metrics = dict[str, list[dict[str, Any]]]

# Below these, a sentence says how far the numbers carry.
FEW_POSITIONS = 10_000_000
FEW_DOCUMENTS = 20

UNCLEAR: Outcome = "cannot be told apart"
_KNOWN = {
    "models", "retention", "held_out", "differences", "documents_won", "cache", "stages", "recipe", "fingerprints",
    "members", "transferred_share", "transferred_share_interval",
}  # fmt: skip
_ABSENT = "\u2013"
_MINUS = "\u2212"


@dataclass(frozen=True)
class Figure:
    """How a figure of `report.json` is named and written."""

    key: str
    title: str
    unit: str = ""
    digits: int = 3
    lower_is_better: bool | None = None  # None: neither
    scale: float = 1.0

    def value(self, value: Any) -> str:
        """With its unit."""
        return self.bare(value) + (self.unit if _is_number(value) and self.unit != "%" else "")

    def bare(self, value: Any) -> str:
        """As a table has it, whose row names the unit; a percent sign stays."""
        if not _is_number(value):
            return _ABSENT if value is None else str(value)
        if self.key == "parameters":
            return _count(value)
        shown = round(value * self.scale, self.digits) + 0.0  # 0 has no sign
        return f"{shown:,.{self.digits}f}{'%' if self.unit == '%' else ''}".replace("-", _MINUS)

    def signed(self, values: Iterable[float]) -> list[str]:
        """With as many digits as it takes for none but a true zero to be written as zero."""
        scaled = [value * self.scale for value in values]
        digits = self.digits
        while digits < 9 and any(value and not round(value, digits) for value in scaled):
            digits += 1
        return [f"{value:+,.{digits}f}".replace("-", _MINUS) for value in scaled]

    @property
    def step(self) -> str:
        """The unit of a difference: two percentages differ by points."""
        return " points" if self.unit == "%" else self.unit

    @property
    def direction(self) -> str:
        return {True: "lower is better", False: "higher is better", None: ""}[self.lower_is_better]

    @property
    def note(self) -> str:
        """What stands beside its name in the table of models."""
        return ", ".join(filter(None, [self.unit.strip(" %"), self.direction]))


FIGURES = (
    Figure("cross_entropy", "cross-entropy", " nats", 3, lower_is_better=True),
    Figure("perplexity", "perplexity", "", 1, lower_is_better=True),
    Figure("kl_from_teacher", "KL from the teacher", " nats", 3, lower_is_better=True),
    Figure("agreement", "top-1 agreement", "%", 1, lower_is_better=False, scale=100),
    Figure("accuracy", "accuracy", "%", 1, lower_is_better=False, scale=100),
    Figure("ece", "calibration error", "%", 1, lower_is_better=True, scale=100),
    Figure("parameters", "parameters", "", 0),
    Figure("positions_per_second", "positions a second", "", 0, lower_is_better=False),
)
_BY_KEY = {figure.key: figure for figure in FIGURES}
JUDGED = {
    "cross_entropy": "Held-out cross-entropy",
    "kl_from_teacher": "KL from the teacher",
    "agreement": "Top-1 agreement with the teacher",
}


@dataclass(frozen=True)
class Comparison:
    """Student against baseline in one figure."""

    figure: Figure
    outcome: Outcome | None  # None: of this figure it is not known which way is better
    student: str
    baseline: str
    difference: str
    low: str
    high: str
    zero: str  # how the interval lies to zero


@dataclass(frozen=True)
class Verdict:
    headline: str
    comparisons: list[Comparison]
    sentences: list[str]


def render(report: dict[str, Any], metrics: Metrics, calibration: dict[str, list[dict[str, float]]]) -> str:
    """The page. `metrics` has one mapping a step for each arm, `calibration` the bins of each model."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("distributed_kd.evaluate").joinpath("report.html.j2").read_text("utf-8")
    found = verdict(report)
    return environment.from_string(template).render(
        name=report.get("recipe", {}).get("name", "unnamed"),
        version=__version__,
        verdict=found,
        retention=_percent(report.get("retention")) if _is_distilled(report) else None,
        held_out=report.get("held_out", {}),
        bootstrap=report.get("recipe", {}).get("evaluate", {}).get("bootstrap"),
        models=list(report["models"]),
        rows=_model_rows(report["models"]),
        differences=_comparisons(report, report.get("differences", {})),
        interval_plot=_interval_plot(report),
        further=_further(report),
        curves=_curves(metrics),
        arms=[arm for arm, steps in metrics.items() if steps],
        calibration=_calibration(calibration),
        stages=_stages(report.get("stages", {})),
        cache=_cache(report.get("cache", {})),
        plain_bytes=_plain_bytes(report.get("cache", {})),
        parts=_parts(report.get("cache", {})),
        recipe=yaml.safe_dump(report.get("recipe", {}), sort_keys=False, allow_unicode=True),
        fingerprints=_fingerprints(report),
        judged=JUDGED,
        role=plots.role,
        dashes=plots.dashes,
    )


# What the numbers say


def outcome(figure: Figure, found: dict[str, Any], documents: int | None = None) -> Outcome | None:
    """Better or worse only when the whole interval lies on one side of zero; touching it is not enough."""
    low, high = found["interval"]
    # One document has nothing to resample: its interval is a point and says nothing.
    told_apart = (low > 0 or high < 0) and documents != 1
    if figure.lower_is_better is None:
        return None if told_apart else UNCLEAR
    if not told_apart:
        return UNCLEAR
    return "better" if (high < 0) == figure.lower_is_better else "worse"


def verdict(report: dict[str, Any]) -> Verdict:
    """Headline, the three comparisons behind it, and what else is to be said before the tables."""
    found = report.get("differences", {})
    comparisons = _comparisons(report, {key: found[key] for key in JUDGED if key in found})
    if comparisons:
        headline = _headline(comparisons)
        sentences = [f"{_documents(report)} {_how_compared(report)}".strip(), _kept(report)]
    else:
        headline = _headline_alone(report)
        alone = "No baseline was trained, so nothing here says what the soft targets added over hard labels."
        if not _is_distilled(report):
            alone = "It has no teacher: nothing was distilled."
        sentences = [_against_teacher(report), _kept(report, with_accuracy=False), alone]
    return Verdict(headline, comparisons, [text for text in [*sentences, _scale(report)] if text])


def _comparisons(report: dict[str, Any], found: dict[str, Any]) -> list[Comparison]:
    models, documents = report["models"], report.get("held_out", {}).get("documents")
    rows = []
    for key in sorted(found, key=_place):
        figure = _figure(key)
        difference, low, high = figure.signed([found[key]["difference"], *found[key]["interval"]])
        own, other = (figure.value(models.get(arm, {}).get(key)) for arm in ("student", "baseline"))
        found_out = outcome(figure, found[key], documents)
        zero = "which means nothing for one document" if documents == 1 else "which includes zero"
        zero = zero if found_out == UNCLEAR else "clear of zero"
        rows.append(Comparison(figure, found_out, own, other, difference, low, high, zero))
    return rows


def _headline(comparisons: list[Comparison]) -> str:
    def named(which: Outcome, last: str) -> str:
        return _listed([row.figure.title for row in comparisons if row.outcome == which], last)

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
    return f"Against {other}, the distilled student {_listed(said, 'and')}."


def _is_distilled(report: dict[str, Any]) -> bool:
    return "teacher" in report["models"]


def _headline_alone(report: dict[str, Any]) -> str:
    if not _is_distilled(report):
        accuracy = _percent(report["models"].get("student", {}).get("accuracy"))
        return f"Trained on hard labels alone, the student is right in {accuracy} of held-out positions."
    return f"The distilled student\u2019s accuracy is {_percent(report.get('retention'))} of the teacher\u2019s."


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
        f"{key.replace('_', ' ')} {_plain(value)} where the student has {_plain(trainer.get(key))}"
        for key, value in said.items()
        if value != trainer.get(key)
    ]
    text = "Both start from the same weights and see the same sequences in the same order for as many steps"
    return f"{text}; the baseline has {_listed(differing, 'and')}." if differing else f"{text}."


def _kept(report: dict[str, Any], with_accuracy: bool = True) -> str:
    """Accuracy, size and speed as shares of the teacher's."""
    teacher, student = (report["models"].get(name, {}) for name in ("teacher", "student"))
    said = []
    accuracy = ""
    if with_accuracy and _is_number(report.get("retention")):
        best = report["models"].get("ensemble", teacher)
        other = _ratio(report["models"].get("baseline", {}).get("accuracy"), best.get("accuracy"))
        aside = f" (the baseline\u2019s: {_percent(other)})" if other else ""
        whose = "ensemble" if "ensemble" in report["models"] else "teacher"
        accuracy = f"The student\u2019s accuracy is {_percent(report['retention'])} of the {whose}\u2019s{aside}. "
    accuracy += _transferred(report)
    size = _ratio(student.get("parameters"), teacher.get("parameters"))
    if size:
        counts = f"{_count(student['parameters'])} of {_count(teacher['parameters'])}"
        said.append(f"has {_percent(size)} of the teacher\u2019s parameters ({counts})")
    speed = _ratio(student.get("positions_per_second"), teacher.get("positions_per_second"))
    if speed:
        said.append(f"scored {speed:.2f} times as many positions a second")
    return accuracy + (f"{'It' if accuracy else 'The student'} {_listed(said, 'and')}." if said else "")


def _transferred(report: dict[str, Any]) -> str:
    share, edges = report.get("transferred_share"), report.get("transferred_share_interval") or []
    if not _is_number(share) or not all(_is_number(edge) for edge in edges):
        return ""
    low, high = (_percent(edge).replace("-", _MINUS) for edge in edges)
    count = len(report.get("members", [])) or "its"
    return (
        f"Of what the mean of {count} teachers gains in accuracy over the baseline, it has "
        f"{_percent(share).replace('-', _MINUS)} (95%: {low} to {high}). "
    )


def _against_teacher(report: dict[str, Any]) -> str:
    teacher, student = (report["models"].get(name, {}) for name in ("teacher", "student"))
    said = []
    if "cross_entropy" in student and "cross_entropy" in teacher:
        figure = _BY_KEY["cross_entropy"]
        values = f"{figure.value(student['cross_entropy'])} against {figure.value(teacher['cross_entropy'])}"
        said.append(f"its held-out cross-entropy is {values}")
    if "kl_from_teacher" in student:
        said.append(f"its KL from the teacher is {_BY_KEY['kl_from_teacher'].value(student['kl_from_teacher'])}")
    if "agreement" in student:
        said.append(f"its first choice is the teacher\u2019s in {_percent(student['agreement'])} of positions")
    text = _listed(said, "and")
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
    return _ratio(
        (trainer.get("steps") or 0) * (trainer.get("global_batch") or 0), report.get("cache", {}).get("sequences")
    )


# Tables and plots


def _model_rows(models: dict[str, dict[str, Any]]) -> list[tuple[Figure, list[str]]]:
    keys = sorted({key for own in models.values() for key in own}, key=_place)
    return [(_figure(key), [_figure(key).bare(own.get(key)) for own in models.values()]) for key in keys]


def _further(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What a later version's report says at its top level, in numbers or words."""
    rows = []
    for key, value in report.items():
        values = value if isinstance(value, list) else [value]
        if key not in _KNOWN and values and all(_is_number(one) or isinstance(one, str) for one in values):
            rows.append((_figure(key).title, " to ".join(_plain(one) for one in values)))
    return rows


def _interval_plot(report: dict[str, Any]) -> Any:
    documents = report.get("held_out", {}).get("documents")
    rows = []
    for key in sorted(report.get("differences", {}), key=_place):
        figure, found = _figure(key), report["differences"][key]
        base = report["models"].get("baseline", {}).get(key)
        numbers = [found["difference"], *found["interval"]]
        if not base or figure.lower_is_better is None or not all(_is_number(number) for number in numbers):
            continue
        sign = -100 if figure.lower_is_better else 100
        value, *edges = [sign * number / abs(base) for number in numbers]
        low, high = sorted(edges)
        rows.append(plots.Interval(figure.title, value, low, high, outcome(figure, found, documents) != UNCLEAR))
    if not rows:
        return None
    said = [f"{row.title} {row.value:+.1f}% ({row.low:+.1f} to {row.high:+.1f})" for row in rows]
    label = "Student against baseline in percent of the baseline's value, positive is better: " + ", ".join(said)
    return plots.intervals("intervals", label, rows)


def _curves(metrics: Metrics) -> list[dict[str, Any]]:
    shown = []
    for key, title, not_read in (
        ("cross_entropy", "cross-entropy", "never reads the hard labels"),
        ("divergence", "divergence from the teacher", "reads the hard labels alone"),
    ):
        arms: dict[str, tuple[list[float], list[float]]] = {}
        for arm, steps in metrics.items():
            points = [(line["step"] + 1, line[key]) for line in steps if _is_number(line.get(key))]
            if points:
                arms[arm] = ([step for step, _ in points], [value for _, value in points])
        if not arms:
            continue
        said = [f"{arm} from {values[0]:.2f} to {values[-1]:.2f} nats" for arm, (_, values) in arms.items()]
        label = f"Training {title} over {max(steps[-1] for steps, _ in arms.values()):,} steps: {', '.join(said)}"
        missing = [arm for arm, steps in metrics.items() if steps and arm not in arms]
        plot = plots.curve(f"curve-{key}", label, arms, f"{title}, nats")
        most = max(len(steps) for steps, _ in arms.values())
        curve = {"title": title, "plot": plot, "missing": missing, "reason": not_read, "each": plots.thinning(most)}
        shown.append(curve)
    return shown


def _calibration(calibration: dict[str, list[dict[str, float]]]) -> dict[str, Any] | None:
    known = {model: bins for model, bins in calibration.items() if sum(row["positions"] for row in bins)}
    if not known:
        return None
    highest = [f"{model} {_percent(max(row['confidence'] for row in bins))}" for model, bins in known.items()]
    return {
        "models": list(known),
        "reliability": plots.reliability(
            "reliability", f"Accuracy over confidence for {_listed(list(known), 'and')}, with the diagonal", known
        ),
        "confidence": plots.confidence(
            "confidence", f"Share of positions over confidence; most confident bin: {', '.join(highest)}", known
        ),
    }


def _stages(stages: dict[str, Any]) -> dict[str, Any]:
    timed = {name: run for name, run in stages.items() if isinstance(run, dict) and _is_number(run.get("seconds"))}
    total = sum(run["seconds"] for run in timed.values())
    rows = [
        {
            "name": name,
            "seconds": f"{run['seconds']:,.1f}",
            "share": run["seconds"] / total if total else 0.0,
            "memory": _binary(run.get("peak_memory_bytes")),
        }
        for name, run in timed.items()
    ]
    return {"rows": rows, "total": f"{total:,.1f}", "duration": _duration(total)}


def _cache(cache: dict[str, Any]) -> list[tuple[str, str]]:
    """The cache's own facts by name; byte parts have their own table."""
    known: dict[str, tuple[str, Callable[[Any], str]]] = {
        "teacher": ("teacher", str),
        "positions": ("positions", _plain),
        "sequences": ("sequences", _plain),
        "shards": ("shards", _plain),
        "missing_shards": ("missing shards", lambda shards: _listed([str(shard) for shard in shards], "and") or "none"),
        "method": ("method", lambda method: str(method).replace("_", "-")),
        "k": ("ids kept a position, K", _plain),
        "mean_kept_mass": ("teacher mass kept, mean", _percent),
        "temperatures": ("temperatures", lambda values: ", ".join(f"{value:g}" for value in values)),
        "codec": ("codec", str),
        "bytes_total": ("bytes", lambda value: f"{_plain(value)} ({_binary(value)})"),
        "bytes_per_position": ("bytes a position, all counted", lambda value: f"{value:,.1f}"),
        "tokenizer_sha256": ("tokenizer, SHA-256", _beginning),
        "fingerprint": ("fingerprint", _beginning),
    }
    rows = [(title, write(cache[key])) for key, (title, write) in known.items() if cache.get(key) is not None]
    others = [key for key in cache if key not in known and key != "bytes_by_part"]
    return rows + [(key.replace("_", " "), _plain(cache[key])) for key in others if not isinstance(cache[key], dict)]


def _parts(cache: dict[str, Any]) -> list[dict[str, Any]]:
    parts, positions = cache.get("bytes_by_part") or {}, cache.get("positions")
    total = sum(parts.values())
    return [
        {
            "name": name.replace("_", " "),
            "bytes": f"{size:,}",
            "each": f"{size / positions:,.1f}" if positions else _ABSENT,
            "share": size / total if total else 0.0,
        }
        for name, size in sorted(parts.items(), key=lambda item: -item[1])
    ]


def _plain_bytes(cache: dict[str, Any]) -> str | None:
    """Bytes a position of the obvious layout, to hold the cache's own against."""
    return _plain(6 * cache["k"]) if cache.get("method") == "top_k" and cache.get("k") else None


def _fingerprints(report: dict[str, Any]) -> dict[str, str]:
    cache = report.get("cache", {})
    own = {"tokenizer": cache.get("tokenizer_sha256"), "cache": cache.get("fingerprint")} | report.get(
        "fingerprints", {}
    )
    return {name: value for name, value in own.items() if value}


# Words and numbers


def _figure(key: str) -> Figure:
    return _BY_KEY.get(key, Figure(key, key.replace("_", " ")))


def _place(key: str) -> tuple[int, str]:
    return (FIGURES.index(_BY_KEY[key]) if key in _BY_KEY else len(FIGURES), key)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _ratio(value: Any, other: Any) -> float | None:
    return value / other if _is_number(value) and _is_number(other) and other else None


def _listed(words: list[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _plain(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}%" if _is_number(value) else "an unknown share"


def _beginning(digest: Any) -> str:
    """Of a digest that stands in full among the fingerprints."""
    return f"{str(digest)[:10]}\u2026"


def _count(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.1f}{letter}"
    return f"{value:,.0f}"


def _binary(value: Any) -> str:
    if not _is_number(value) or not value:
        return _ABSENT
    power = min(int(math.log(value, 1024)), 4)
    return f"{value / 1024**power:,.{2 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"
