"""The training loop: what a step is divided by and says, when a checkpoint is written, what a resumed run repeats."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_kd.errors import Stopped, WorkError
from distributed_kd.launch.watch import Watch
from distributed_kd.recipe import Objective, Trainer
from distributed_kd.store.filesystem import Store
from distributed_kd.student import loop
from distributed_kd.student.flops import Work
from distributed_kd.student.objective import Loss
from distributed_kd.student.position_targets import PositionTargets
from distributed_kd.student.stream import MicroBatch
from tests.forked_ranks import in_ranks
from tests.student.scripted_engine import Batches, ScriptedEngine, one_position

STEPS = 7


class Notes:
    """What the loop did, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def save(self, engine: Any, done: int, metrics: list[dict[str, Any]], seconds: float = math.inf) -> None:
        self.lines.append(f"saved {done} of {len(metrics)}")

    def wait(self, seconds: float) -> None:
        self.lines.append("waited")


def trained(
    steps: range,
    metrics: list[dict[str, Any]] | None = None,
    stop_in: int | None = None,
    asked: threading.Event | None = None,
    **said: Any,
) -> tuple[ScriptedEngine, list[dict[str, Any]], list[str]]:
    """(the engine, metrics, what was done); `stop_in`: the step in which it is asked to stop, by setting `asked`."""
    asked = asked or threading.Event()
    engine, notes = ScriptedEngine([2.0] * steps.stop, {}, steps.start), Notes()
    metrics = [] if metrics is None else metrics
    loop_said = {name: said.pop(name) for name in ("held_out", "work", "meet") if name in said}
    stream = said.pop("stream", Batches())
    trainer = Trainer(steps=steps.stop, **({"global_batch": 1} | said))

    def report(lines: list[dict[str, Any]]) -> None:
        notes.lines.append(f"reported {len(lines)}")
        if lines[-1]["step"] == stop_in:
            asked.set()

    try:
        loop.train(
            engine, stream, trainer, steps, metrics, notes, report,  # type: ignore[arg-type]
            asked.is_set, **loop_said,
        )  # fmt: skip
    except Stopped as stopped:
        notes.lines.append(str(stopped))
    return engine, metrics, notes.lines


@pytest.mark.usefixtures("one_rank")
def test_checkpoints_are_between_steps_and_none_is_after_the_last() -> None:
    _, metrics, done = trained(range(6), checkpoint_every=2)
    assert [line["step"] for line in metrics] == list(range(6))
    assert done == [
        "reported 1", "reported 2", "saved 2 of 2",
        "reported 3", "reported 4", "saved 4 of 4",
        "reported 5", "reported 6",
    ]  # fmt: skip
    assert trained(range(2))[2] == ["reported 1", "reported 2"]


@pytest.mark.usefixtures("one_rank")
def test_a_resumed_run_goes_on_where_the_other_was_and_draws_what_it_would_have_drawn() -> None:
    whole, lines, _ = trained(range(STEPS))
    resumed, more, done = trained(range(4, STEPS), metrics=lines[:4], checkpoint_every=3)
    assert resumed.drawn == whole.drawn[4:] and len(set(whole.drawn)) == STEPS
    assert [line["step"] for line in more] == list(range(STEPS))
    assert done == ["reported 5", "reported 6", "saved 6 of 6", "reported 7"]
    assert trained(range(STEPS), seed=1)[0].drawn[0] not in whole.drawn


@pytest.mark.usefixtures("one_rank")
def test_a_stop_is_saved_once_and_said() -> None:
    after_3 = "stopped after step 3, which is saved; the same command goes on from there"
    assert trained(range(STEPS), stop_in=3, checkpoint_every=4)[2][-3:] == ["saved 4 of 4", "waited", after_3]
    assert trained(range(STEPS), stop_in=3)[2][-3:] == ["saved 4 of 4", "waited", after_3]
    # In the last step there is nothing left to stop, and before the first nothing to save.
    assert trained(range(STEPS), stop_in=STEPS - 1)[2][-1] == f"reported {STEPS}"
    asked = threading.Event()
    asked.set()
    begun, _, done = trained(range(2, STEPS), metrics=[], asked=asked)
    assert done == ["stopped before the first step of this run; the same command goes on from there"]
    assert begun.global_steps == 2


def test_one_rank_that_is_asked_to_stop_stops_them_all_and_each_draws_its_own() -> None:
    def deed(watch: Watch) -> tuple[list[str], list[float]]:
        engine, _, done = trained(range(STEPS), stop_in=2 if watch.rank else None, global_batch=2)
        return done[-3:], engine.drawn

    (first, one), (second, other) = in_ranks(2, deed)
    assert first == second == [
        "saved 3 of 3", "waited", "stopped after step 2, which is saved; the same command goes on from there"
    ]  # fmt: skip
    assert not {*one} & {*other}


class Withheld(Batches):
    """A rank's batch of one step never comes: its store does not answer."""

    def __init__(self, step: int | None) -> None:
        self.step, self.asked, self.taken = step, lambda: False, 0

    def steps(self, first: int, end: int, is_asked_to_stop: Callable[[], bool]) -> Withheld:  # type: ignore[override]
        self.asked = is_asked_to_stop
        return self

    def is_ready(self) -> bool:
        return self.taken != self.step

    def __next__(self) -> list[MicroBatch]:
        while self.taken == self.step:
            if self.asked():
                raise StopIteration
            time.sleep(0.01)
        self.taken += 1
        return [one_position(self.taken - 1)]

    def close(self) -> None:
        return


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("asked", [0, 1])
def test_a_stop_is_heard_by_a_rank_that_waits_for_its_batch_whichever_rank_is_asked(asked: int, follow: bool) -> None:
    """Rank 1 waits in step 4 for good; both save what step 3 has made."""

    def deed(watch: Watch) -> tuple[list[str], int]:
        engine, _, done = trained(
            range(STEPS), stop_in=3 if watch.rank == asked else None, asked=watch.asked_to_stop, global_batch=2,
            stream=Withheld(4 if watch.rank else None), meet=watch.meet if follow else None,
        )  # fmt: skip
        return done[-3:], engine.global_steps

    last = ["saved 4 of 4", "waited", "stopped after step 3, which is saved; the same command goes on from there"]
    assert in_ranks(2, deed) == [(last, 4)] * 2


@pytest.mark.usefixtures("one_rank")
def test_held_out_documents_are_looked_at_every_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "held_out_loss", lambda engine, sequences: (engine.global_steps, sequences))
    _, metrics, _ = trained(range(5), held_out=["some"], evaluate_every=2)
    assert [line.get("held_out_loss") for line in metrics] == [None, (2, ["some"]), None, (4, ["some"]), None]
    assert not any("held_out_loss" in line for line in trained(range(2), evaluate_every=1)[1])


class Late:
    """Batches that take 0.1 s each, of three present tokens; says whether one is ready at the steps of `ready`."""

    def __init__(self, ready: tuple[int, ...] = ()) -> None:
        self.ready = ready

    def steps(self, first: int, end: int, is_asked_to_stop: Callable[[], bool]) -> LateBatches:
        return LateBatches(self, first, end)


class LateBatches:
    def __init__(self, late: Late, first: int, end: int) -> None:
        self.late, self.step, self.end = late, first, end

    def is_ready(self) -> bool:
        return self.step in self.late.ready

    def __next__(self) -> list[MicroBatch]:
        time.sleep(0.1)
        self.step += 1
        return [one_position(self.step - 1)]

    def close(self) -> None:
        self.late.closed = True  # type: ignore[attr-defined]


@pytest.mark.usefixtures("one_rank")
def test_the_wait_for_the_cache_is_a_share_of_the_step_and_the_stream_is_closed() -> None:
    stream = Late()
    _, metrics, _ = trained(range(2), stream=stream, work=Work(operations=1000, peak=100.0))
    assert stream.closed  # type: ignore[attr-defined]
    for line in metrics:
        waited = line["data_wait"] * line["seconds"] / (1.0 - line["data_wait"])
        assert 0.1 <= waited < 5.0 and 0.0 < line["seconds"] < 5.0
        # One token in the whole of the step.
        assert line["flop_utilisation"] == pytest.approx(1000 / (waited + line["seconds"]) / 100.0)
    assert "flop_utilisation" not in trained(range(1))[1][0]


def test_the_wait_is_that_of_the_rank_which_waited_longest() -> None:
    def deed(watch: Watch) -> list[tuple[float, float]]:
        _, metrics, _ = trained(range(3), stream=Late() if watch.rank else Batches(), global_batch=2)
        return [(line["data_wait"] * line["seconds"] / (1.0 - line["data_wait"]), line["seconds"]) for line in metrics]

    for lines in in_ranks(2, deed):
        for waited, seconds in lines:
            assert waited >= 0.1 > seconds


def test_ranks_meet_before_a_step_for_which_one_of_them_waits() -> None:
    def deed(watch: Watch) -> tuple[list[str], list[float]]:
        met: list[str] = []
        ready = (0, 1, 3) if watch.rank else (0, 2, 3)
        work = Work(operations=1000, peak=100.0)
        _, metrics, _ = trained(range(4), stream=Late(ready), meet=met.append, work=work, global_batch=2)
        tokens = [line["flop_utilisation"] * 100 / 1000 * line["seconds"] / (1 - line["data_wait"]) for line in metrics]
        return met, tokens

    for met, tokens in in_ranks(2, deed):
        assert met == ["step 1", "step 2"]
        assert tokens == pytest.approx([1.0] * 4)  # of this rank's device, not of both


class PartsEngine(ScriptedEngine):
    """Gives each micro-batch the parts of its loss: (cross-entropy, divergence, tail, cosine)."""

    def __init__(self, parts: list[tuple[float, float, float, float]], objective: Objective) -> None:
        super().__init__([], {})
        self.parts, self.module.objective = parts, objective
        self.calls = 0

    def __call__(self, batch: MicroBatch, scale: float) -> torch.Tensor:
        cross_entropy, divergence, tail, cosine = map(torch.tensor, self.parts[self.calls])
        self.module.last_loss = Loss(torch.tensor(0.0), cross_entropy, divergence, tail, cosine)
        self.scales.append(scale)
        self.calls += 1
        return torch.tensor(0.0)

    def step(self) -> None:
        """As DeepSpeed's, which the loop calls after each micro-batch: the last one's is the optimizer's."""
        self.global_steps += self.calls == len(self.parts)


def weighted(number: int, weights: list[float], labels: list[int]) -> MicroBatch:
    """A sequence of so many positions and one token more, in shard 7."""
    count = len(weights)
    ids = torch.zeros(count, 1, dtype=torch.long)
    targets = PositionTargets(torch.tensor(labels), ids, ids.float(), ids.float()[:, 0], torch.tensor(weights))
    present = torch.ones(1, count + 2, dtype=torch.bool)
    present[0, -1] = False
    return replace(one_position(number), present=present, targets=targets)


OBJECTIVE = Objective(alpha=0.75, temperature=2.0, cosine=3.0)
TWO = [weighted(4, [1.0, 0.5], [3, -100]), weighted(5, [2.0, 0.25, 0.25], [-100, 1, 1])]  # weights 1.5 and 2.5
PARTS = [(3.0, 1.0, 0.5, 1.5), (1.0, 7.0, 1.5, 2.5)]


def test_a_step_is_the_mean_over_the_global_batch_by_weight() -> None:
    def deed(watch: Watch) -> tuple[dict[str, float], list[float], int]:
        engine = PartsEngine(PARTS if watch.rank else [(0.0, 0.0, 0.0, 0.0)] * 2, OBJECTIVE)
        batches = TWO if watch.rank else [weighted(6, [0.0], [0]), weighted(7, [4.0], [0])]
        line = loop.take_step(engine, batches)
        return line, engine.scales, engine.global_steps

    for line, scales, steps in in_ranks(2, deed):
        assert scales == [2 * 2 / 8.0] * 2 and steps == 1  # ranks x micro-batches over the weight
        assert line["positions"] == 7 and line["tokens"] == 11
        assert line["divergence"] == 8.0 / 8.0 and line["tail_share"] == 2.0 / 8.0
        assert line["loss"] == 0.75 * 4.0 * 1.0 + 0.25 * 4.0 / 8.0 + 3.0 * 4.0 / 8.0
        assert line["cosine"] == 4.0 / 8.0
        assert line["cross_entropy"] == 4.0 / 5.5  # of the positions with a label
        assert line["learning_rate"] == 1e-3 and line["gradient_norm"] == 1.0
        assert line["memory_peak_bytes"] > 1 << 20


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(("alpha", "loss"), [(0.0, 1.0), (1.0, 8.0)])
def test_what_is_not_read_counts_for_nothing(alpha: float, loss: float) -> None:
    unread = math.nan
    parts = (4.0, unread, unread, unread) if alpha == 0.0 else (unread, 8.0, 2.0, unread)
    objective = Objective(alpha=alpha, temperature=2.0)
    line = loop.take_step(PartsEngine([parts], objective), [weighted(4, [4.0], [0])])
    assert line["loss"] == loss
    assert "cosine" not in line
    assert ("cross_entropy" in line, "divergence" in line) == ((True, False) if alpha == 0.0 else (False, True))
    empty = PartsEngine([(0.0, 0.0, 0.0, unread)], objective)
    empty.norms[0] = None  # type: ignore[assignment]  # DeepSpeed's before its first step
    nothing = loop.take_step(empty, [weighted(4, [], [])])
    assert nothing["loss"] == nothing["positions"] == nothing["gradient_norm"] == 0.0


def refusal(
    batches: Callable[[Watch], list[MicroBatch]], parts: Callable[[Watch], list[Any]], store: Store | None = None
) -> list[Any]:
    def deed(watch: Watch) -> tuple[str, int]:
        engine = PartsEngine(parts(watch), OBJECTIVE)
        try:
            loop.take_step(engine, batches(watch), store=store)
        except WorkError as error:
            return str(error), engine.global_steps
        raise AssertionError("it was taken")

    return in_ranks(2, deed)


def test_a_loss_that_is_not_finite_names_the_sequences_that_gave_it_and_no_others() -> None:
    bad = [(3.0, 1.0, 0.5, 0.0), (1.0, math.nan, 1.5, 0.0)]
    for line, steps in refusal(lambda watch: TWO, lambda watch: bad if watch.rank else PARTS):
        assert line == (
            "the loss is nan at step 0, from sequences 5 (shard 7); the weights did not take it: lower "
            "trainer.learning_rate or look at these sequences; the same command goes on from the last checkpoint"
        )
        assert steps == 0


def test_of_many_sequences_the_first_are_named_and_all_are_listed(tmp_path: Path) -> None:
    def own(watch: Watch) -> list[MicroBatch]:
        return [weighted(10 * watch.rank + place, [1.0], [0]) for place in range(8)]

    for line, _ in refusal(own, lambda watch: [(math.inf, 1.0, 0.0, 0.0)] * 8, Store(str(tmp_path))):
        named = re.search(r"from sequences (.*) and 8 more, all of them in (\S+); the weights", line)
        assert named is not None and named[1] == ", ".join(f"{number} (shard 7)" for number in range(8))
        listed = json.loads(Path(named[2].removeprefix("file://")).read_text())
        assert listed["sequences"] == [{"sequence": one, "shard": 7} for one in (*range(8), *range(10, 18))]
        assert listed["step"] == 0 and listed["reason"] == "the loss is inf"
