"""The figures of `report.json`: what each is called and how it is written, on the page, in a terminal and on the card.

A name has three widths: a terminal's column, the page's tables, and where it stands alone. The page writes shares in
percent; terminal and card as they are in `report.json`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from distributed_kd.evaluate.words import ABSENT, MINUS, count, is_number


@dataclass(frozen=True)
class Figure:
    """How a figure of `report.json` is named and written."""

    key: str
    title: str
    unit: str = ""
    digits: int = 3  # of `value * scale`
    lower_is_better: bool | None = None  # None: neither
    scale: float = 1.0
    short: str = ""
    long: str = ""

    @property
    def in_terminal(self) -> str:
        return self._with_unit(self.short or self.title)

    @property
    def alone(self) -> str:
        """For where nothing beside it says what it is of."""
        return self._with_unit(self.long or self.title)

    @property
    def heading(self) -> str:
        words = self.long or self.title
        return words[:1].upper() + words[1:]

    def _with_unit(self, words: str) -> str:
        return words if self.unit in ("", "%") else f"{words},{self.unit}"

    def unscaled(self, value: float) -> str:
        """As terminal and card have it: as exact as on the page, a share in no percent."""
        digits = self.digits + (2 if self.unit == "%" else 0)
        return f"{round(value, digits) + 0.0:,.{digits}f}"  # 0 has no sign

    def value(self, value: Any) -> str:
        """With its unit."""
        return self.bare(value) + (self.unit if is_number(value) and self.unit != "%" else "")

    def bare(self, value: Any) -> str:
        """As a table has it, whose row names the unit; a percent sign stays."""
        if not is_number(value):
            return ABSENT if value is None else str(value)
        if self.key == "parameters":
            return count(value)
        shown = round(value * self.scale, self.digits) + 0.0  # 0 has no sign
        return f"{shown:,.{self.digits}f}{'%' if self.unit == '%' else ''}".replace("-", MINUS)

    def signed(self, values: Iterable[float]) -> list[str]:
        """With as many digits as it takes for none but a true zero to be written as zero."""
        scaled = [value * self.scale for value in values]
        digits = self.digits
        while digits < 9 and any(value and not round(value, digits) for value in scaled):
            digits += 1
        return [f"{value:+,.{digits}f}".replace("-", MINUS) for value in scaled]

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
    Figure("cross_entropy", "cross-entropy", " nats", 3, lower_is_better=True, long="held-out cross-entropy"),
    Figure("perplexity", "perplexity", "", 1, lower_is_better=True),
    Figure("kl_from_teacher", "KL from the teacher", " nats", 3, lower_is_better=True, short="KL from teacher"),
    Figure(
        "agreement", "top-1 agreement", "%", 1, lower_is_better=False, scale=100,
        short="agreement", long="top-1 agreement with the teacher",
    ),
    Figure("accuracy", "accuracy", "%", 1, lower_is_better=False, scale=100),
    Figure("ece", "calibration error", "%", 1, lower_is_better=True, scale=100),
    Figure("parameters", "parameters", "", 0),
    Figure("positions_per_second", "positions a second", "", 0, lower_is_better=False, short="positions/s"),
)  # fmt: skip
_BY_KEY = {figure.key: figure for figure in FIGURES}


def figure_of(key: str) -> Figure:
    """One that this version does not know is called by its key."""
    return _BY_KEY.get(key, Figure(key, key.replace("_", " ")))


def place_of(key: str) -> tuple[int, str]:
    """To sort keys by: those of the table in its order, then others by name."""
    return (FIGURES.index(_BY_KEY[key]) if key in _BY_KEY else len(FIGURES), key)
