"""Held-out positions with what each model says of them."""

from __future__ import annotations

from typing import Any

from distributed_kd.evaluate.figures import figure_of

_TITLES = {
    "largest": "Where the student is furthest from the teacher",
    "smallest": "Where it is nearest",
    "drawn": "Drawn at random",
}
_VISIBLE = str.maketrans({"\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d"})


def example_groups(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By why they were chosen, those of one reason in their order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        groups.setdefault(_TITLES.get(example["chosen"], str(example["chosen"])), []).append(_example(example))
    return [{"title": title, "examples": own} for title, own in groups.items()]


def _example(example: dict[str, Any]) -> dict[str, Any]:
    models = example["models"]
    kl = figure_of("kl_from_teacher")
    apart = [
        f"{name} {kl.bare(own['kl_from_teacher'])}"
        for name, own in models.items()
        if name not in ("teacher", "ensemble")
    ]
    best = [
        [(one["text"], f"{100 * one['probability']:.1f}%", one["id"] == example["label"]["id"]) for one in own["best"]]
        for own in models.values()
    ]
    return {
        "before": example["before"].translate(_VISIBLE),
        "after": example["after"].translate(_VISIBLE),
        "label": _token(example["label"]["text"]),
        "models": list(models),
        "rows": [[(_token(text), share, right) for text, share, right in row] for row in zip(*best, strict=False)],
        "note": f"KL from the teacher in nats: {', '.join(apart)}. The teacher\u2019s entropy: "
        f"{example['teacher_entropy']:.3f}. Sequence {example['sequence']}, position {example['position']}.",
    }


def _token(text: str) -> str:
    """With its spaces to be seen: most tokenizers make the space before a word a part of it."""
    return text.replace(" ", "\u2423").translate(_VISIBLE)
