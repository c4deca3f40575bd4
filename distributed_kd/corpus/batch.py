"""Sequences of unequal length as rectangular arrays, for teacher and student alike.

Rows are padded on the right with id 0 and position ids that count on, so that padding is never taken for the beginning
of another document. A causal body ignores it; others look at `present`. Shapes: B sequences, S ids in the longest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distributed_kd.corpus.sequences import NO_LABEL, Sequence


@dataclass(frozen=True)
class Batch:
    input_ids: np.ndarray  # [B, S] int64
    position_ids: np.ndarray  # [B, S] int64
    present: np.ndarray  # [B, S] bool, False where a row is padded
    loss_mask: np.ndarray  # [B, S] bool
    labels: np.ndarray  # [B, S] int64, -100 where no loss
    features: np.ndarray | None = None  # [B, S, F] float32, 0 where a row is padded; where positions are no tokens


def collate(sequences: list[Sequence]) -> Batch:
    """Raises `ValueError` for sequences of which some have features and some have none, or other ones."""
    longest = max(len(sequence.input_ids) for sequence in sequences)
    shape = (len(sequences), longest)
    batch = Batch(
        np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool), np.zeros(shape, bool),
        np.full(shape, NO_LABEL, np.int64), _no_features(sequences, shape),
    )  # fmt: skip
    for row, sequence in enumerate(sequences):
        length = len(sequence.input_ids)
        batch.input_ids[row, :length] = sequence.input_ids
        position_ids = sequence.position_ids
        batch.position_ids[row, :length] = position_ids
        batch.position_ids[row, length:] = position_ids[-1] + 1 + np.arange(longest - length)
        batch.present[row, :length] = True
        batch.loss_mask[row, :length] = sequence.loss_mask
        batch.labels[row, :length] = sequence.labels
        if batch.features is not None and sequence.features is not None:
            batch.features[row, :length] = sequence.features
    return batch


def _no_features(sequences: list[Sequence], shape: tuple[int, int]) -> np.ndarray | None:
    widths = {None if sequence.features is None else sequence.features.shape[1] for sequence in sequences}
    if len(widths) > 1:
        raise ValueError(f"sequences of different features in one batch: {widths}")
    width = widths.pop()
    return None if width is None else np.zeros((*shape, width), np.float32)


def by_length(sequences: list[Sequence]) -> list[int]:
    """Their places, the shortest sequence's first and equal ones in order: a batch of neighbours is padded little."""
    return sorted(range(len(sequences)), key=lambda place: len(sequences[place].input_ids))


def by_tokens(sequences: list[Sequence], batch_tokens: int) -> list[list[Sequence]]:
    """Runs of sequences whose padded batch has at most `batch_tokens` ids (one sequence at least), in order."""
    groups: list[list[Sequence]] = []
    longest = 0
    for sequence in sequences:
        longest = max(longest, len(sequence.input_ids))
        if not groups or longest * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
            longest = len(sequence.input_ids)
        groups[-1].append(sequence)
    return groups
