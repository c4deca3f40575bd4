"""Which positions a student is trained on, and how much each counts, by what the teacher or the labels say of them.

A position's weight depends on its own targets and on its own sequence alone, so that a batch means the same however it
is split. The teacher's distribution is that at the objective's temperature, its tail as one outcome.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distributed_kd.recipe import Objective


@dataclass(frozen=True)
class PositionWeights:
    """confidence_exponent g: a position counts (1 - c)^g, c the probability of the teacher's likeliest id; focal loss
    (Lin et al., ICCV 2017) has it of the model's own. The loss is a mean by these weights.

    entropy_share: of a sequence's positions, the share with the most entropy that is trained on.
    labels_alone: whether only labels teach, so that positions without one are not trained on.
    """

    confidence_exponent: float = 0.0
    entropy_share: float = 1.0
    labels_alone: bool = False

    @classmethod
    def of(cls, objective: Objective, unlabelled: int = 0) -> PositionWeights | None:
        """None where every position counts alike. unlabelled: training positions without a label."""
        labels_alone = objective.alpha == 0.0 and unlabelled > 0
        own = cls(objective.confidence_exponent, objective.entropy_share, labels_alone)
        return None if own == cls() else own

    def chosen(self, log_p: np.ndarray, log_p_tail: np.ndarray, lengths: list[int], labels: np.ndarray) -> np.ndarray:
        """[N] bool. log_p [N, K], log_p_tail and labels [N]; lengths: of the sequences that the N positions are of."""
        of_labels = labels >= 0 if self.labels_alone else np.ones(len(labels), bool)
        return of_labels & self._uncertain(log_p, log_p_tail, lengths)

    def _uncertain(self, log_p: np.ndarray, log_p_tail: np.ndarray, lengths: list[int]) -> np.ndarray:
        if self.entropy_share == 1.0:
            return np.ones(len(log_p), bool)
        entropy = entropies(log_p, log_p_tail)
        chosen = np.zeros(len(log_p), bool)
        begin = 0
        for length in lengths:
            order = np.argsort(-entropy[begin : begin + length], kind="stable")
            chosen[begin + order[: int(np.ceil(self.entropy_share * length))]] = True
            begin += length
        return chosen

    def weights(self, log_p: np.ndarray) -> np.ndarray | None:
        """[N] float32 of log_p [N, K]; None where all count alike."""
        if self.confidence_exponent == 0.0:
            return None
        confidence = np.exp(log_p.max(axis=1, initial=-np.inf))
        return ((1.0 - np.minimum(confidence, 1.0)) ** self.confidence_exponent).astype(np.float32)


def entropies(log_p: np.ndarray, log_p_tail: np.ndarray) -> np.ndarray:
    """[N] nats of log_p [N, K] and log_p_tail [N], over K + 1 outcomes: at most the whole distribution's."""
    every = np.concatenate([log_p, log_p_tail[:, None]], axis=1).astype(np.float64)
    p = np.exp(every)
    return -(p * np.where(p > 0.0, every, 0.0)).sum(axis=1)
