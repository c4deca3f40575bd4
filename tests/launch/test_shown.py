"""What a person sees of a training in ranks: steps, what comes after the last, and ranks that start again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from distributed_kd import console
from distributed_kd.launch.ranks import shown


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each wait, each bar's beginning and steps, and each line, in order; what is seen twice in a row once."""
    found: list[str] = []

    def see(text: str) -> None:
        if text not in found[-1:]:
            found.append(text)

    @contextmanager
    def waiting(description: str) -> Iterator[None]:
        see(description)
        yield

    @contextmanager
    def progress(description: str, total: float) -> Iterator[Any]:
        yield lambda done, note="": see(f"{description} {done} of {total}")

    for name, shows in (("waiting", waiting), ("progress", progress), ("say", see)):
        monkeypatch.setattr(console, name, shows)
    return found


def show(read: list[int | None]) -> None:
    """The training whose steps are read so, and which has ended once they all are."""
    left = iter(read)
    last: dict[str, Any] | None = None
    is_over = False

    def state() -> dict[str, Any] | None:
        nonlocal last, is_over
        try:
            done = next(left)
            last = None if done is None else {"done": done, "total": 3, "note": ""}
        except StopIteration:
            is_over = True
        return last

    with shown("student", state, 0.001):
        while not is_over:
            time.sleep(0.001)


def test_what_comes_after_the_last_step_has_a_clock(seen: list[str]) -> None:
    show([None, 1, 2, 3, 3, 3])
    assert seen == [
        "student: starting, until the first step", "student 1 of 3", "student 2 of 3", "student 3 of 3",
        "student: all steps are done; its weights are gathered and written",
    ]  # fmt: skip


def test_ranks_that_are_lost_after_their_last_step_have_a_bar_again(seen: list[str]) -> None:
    show([1, 3, 3, None, None, 2, 3, 3])
    assert seen[-6:] == [
        "student 3 of 3", "student: all steps are done; its weights are gathered and written",
        "train: a rank was lost; the student goes on from the last checkpoint", "student 2 of 3", "student 3 of 3",
        "student: all steps are done; its weights are gathered and written",
    ]  # fmt: skip


def test_a_training_that_ends_before_its_first_step_shows_no_bar(seen: list[str]) -> None:
    show([])
    assert seen == ["student: starting, until the first step"]
