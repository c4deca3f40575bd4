"""What a teacher says of positions of real text: the same numbers for every layout of the logit cache.

Shapes: N positions, K kept ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import NO_ID, SoftTargets
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.models.parts import body_of, head_of

LENGTH = 512
WIDEST = 128
MOST_DRAWS = 50
TEMPERATURES = (1.0, 2.0)


@dataclass(frozen=True)
class Captured:
    """What the teacher says of N positions in windows of `LENGTH`; the last position of a window is not scored."""

    windows: np.ndarray  # [windows, LENGTH] int32
    ids: np.ndarray  # [N, WIDEST] int32, the most probable first
    logits: np.ndarray  # [N, WIDEST] float32, relative to the largest
    rest: np.ndarray  # [N, temperatures] logsumexp of the scaled logits that are not in `ids`
    draws: np.ndarray  # [N, MOST_DRAWS] int32: ids drawn at T = 1

    def rows(self, targets: SoftTargets) -> list[Row]:
        mask = np.arange(LENGTH) < LENGTH - 1
        run = np.array([LENGTH], np.int32)
        sequences = [
            Sequence(number, window, mask, np.array([number]), run, isolated=False)
            for number, window in enumerate(self.windows)
        ]
        scored = LENGTH - 1
        return [Row(s, targets[n * scored : (n + 1) * scored]) for n, s in enumerate(sequences)]

    @property
    def tokens(self) -> np.ndarray:
        return self.windows[:, :-1].ravel()

    def top_k(self, k: int, temperatures: tuple[float, ...]) -> SoftTargets:
        odds = []
        for temperature in temperatures:
            scaled = self.logits.astype(np.float64) / temperature
            rest = np.logaddexp(
                self.rest[:, TEMPERATURES.index(temperature)],
                np.logaddexp.reduce(scaled[:, k:], axis=1, initial=-np.inf),
            )
            odds.append(rest - np.logaddexp.reduce(scaled[:, :k], axis=1))
        return SoftTargets(self.ids[:, :k], self.logits[:, :k], np.stack(odds, 1).astype(np.float32), temperatures)

    def drawn(self, draws: int) -> SoftTargets:
        """The first `draws` draws as ids with log-counts, the most frequent first."""
        ids = np.full((len(self.draws), draws), NO_ID, np.int32)
        logits = np.full(ids.shape, -np.inf, np.float32)
        for row, drawn in enumerate(self.draws[:, :draws]):
            found, times = np.unique(drawn, return_counts=True)
            order = np.argsort(-times, kind="stable")
            ids[row, : len(found)] = found[order]
            logits[row, : len(found)] = np.log(times[order] / times[order[0]])
        return SoftTargets(ids, logits, np.full((len(ids), 1), -np.inf, np.float32), (1.0,))


@torch.no_grad()
def capture(model: Any, windows: np.ndarray) -> Captured:
    """Runs the teacher one window at a time, its head over 128 positions at a time."""
    body, head = body_of(model), head_of(model)
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, list[np.ndarray]] = {"ids": [], "logits": [], "rest": [], "draws": []}
    for window in windows:
        hidden = body(torch.tensor(window[None]).long(), torch.arange(LENGTH)[None])[0, :-1]
        for chunk in hidden.split(128):
            logits = head.logits(chunk)
            logits -= logits.max(dim=1, keepdim=True).values
            top, ids = logits.topk(WIDEST, dim=1)
            rest = logits.scatter(1, ids, -torch.inf)
            parts["ids"].append(ids.int().numpy())
            parts["logits"].append(top.numpy())
            parts["rest"].append(torch.stack([torch.logsumexp(rest / t, 1) for t in TEMPERATURES], 1).numpy())
            drawn = torch.multinomial(logits.softmax(1), MOST_DRAWS, replacement=True, generator=generator)
            parts["draws"].append(drawn.int().numpy())
    return Captured(windows, **{name: np.concatenate(arrays) for name, arrays in parts.items()})


def windows_of(files: list[Path], tokenizer: Any, count: int) -> np.ndarray:
    """[count, LENGTH] int32: windows drawn evenly over the files, in a fixed order."""
    rng = np.random.default_rng(0)
    texts = [np.array(tokenizer(path.read_text(errors="replace"))["input_ids"], np.int32) for path in files]
    places = [(n, place) for n, text in enumerate(texts) for place in range(0, len(text) - LENGTH + 1, LENGTH)]
    if len(places) < count:
        raise SystemExit(
            f"the text folder has {len(places)} windows of {LENGTH} tokens in this half; {count} are needed"
        )
    weights = 1.0 / np.array([len(texts[n]) for n, _ in places])
    chosen = rng.choice(len(places), count, replace=False, p=weights / weights.sum())
    return np.stack([texts[places[c][0]][places[c][1] : places[c][1] + LENGTH] for c in sorted(chosen)])
