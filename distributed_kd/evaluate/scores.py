"""Scoring models on held-out sequences, position by position, against the teacher's full distribution.

That of several teachers is the mean of theirs, which is scored as a model of its own. All models see the same batches;
the head is applied in chunks of positions, so that [B, S, V] never exists. Of each chunk the positions that the report
shows are looked at while their distributions are there.
Shapes: n positions of a chunk, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distributed_kd.corpus.batch import by_tokens, collate
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.evaluate.chosen import Chosen
from distributed_kd.models import parts

ENSEMBLE = "ensemble"
KL = 1  # the column of `_rows`


@dataclass
class Scores:
    """One row a scored position, in reading order; `seconds` is what the model's own forward took."""

    cross_entropy: np.ndarray  # nats, of the next id
    kl_from_teacher: np.ndarray  # nats, KL(teacher || model) at T = 1; nan without a teacher, as is
    agrees: np.ndarray  # 1 where it has the teacher's argmax, else 0
    correct: np.ndarray  # bool, argmax is the next id
    confidence: np.ndarray  # probability of the argmax
    seconds: float
    parameters: int


@dataclass
class Scored:
    models: dict[str, Scores]
    teacher_entropy: np.ndarray | None  # nats a position, at T = 1; of several teachers their mean's; None without one


@dataclass
class _Tally:
    model: Any
    body: parts.Body
    head: parts.Head
    rows: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0


@torch.inference_mode()
def score(
    models: dict[str, Any],
    teachers: dict[str, float],
    sequences: list[Sequence],
    batch_tokens: int,
    head_chunk: int,
    advance: Callable[[int], None],
    chosen: Chosen | None = None,
) -> Scored:
    """Scores each model by name, and with several `teachers` their `ENSEMBLE`. `advance` is told the positions done.

    teachers: which of the models are, each with its weight in the mean of their probabilities; none, if there is none.
    chosen: looks at each chunk; with teachers only.
    """
    shares = {name: math.log(weight / sum(teachers.values())) for name, weight in teachers.items()}
    mean: list[np.ndarray] = []
    entropy: list[np.ndarray] = []
    tallies = {name: _Tally(model, parts.body_of(model), parts.head_of(model)) for name, model in models.items()}
    done = 0
    for group in by_tokens(sequences, batch_tokens):
        batch = collate(group)
        scored = torch.from_numpy(batch.loss_mask)
        labels = torch.from_numpy(batch.labels)[scored]
        hidden = {name: _timed(tally, _hidden, tally, batch, scored) for name, tally in tallies.items()}
        for begin in range(0, len(labels), head_chunk):
            chunk = slice(begin, begin + head_chunk)
            logits = {name: _timed(tally, _logits, tally.head, hidden[name][chunk]) for name, tally in tallies.items()}
            log_q = {name: own.log_softmax(dim=1) for name, own in logits.items()}
            own = [log_q[name] + share for name, share in shares.items()]
            teacher = torch.stack(own).logsumexp(dim=0) if len(own) > 1 else own[0] if own else None
            p = None if teacher is None else teacher.exp()
            device_labels = labels[chunk].to(next(iter(log_q.values())).device)
            rows = {name: _rows(own, teacher, p, device_labels).cpu().numpy() for name, own in log_q.items()}
            for name, tally in tallies.items():
                tally.rows.append(rows[name])
            if teacher is None or p is None:
                continue
            if len(own) > 1:
                log_q = {ENSEMBLE: teacher} | {name: log_q[name] for name in log_q if name not in shares}
                rows[ENSEMBLE] = _rows(teacher, teacher, p, device_labels).cpu().numpy()
                mean.append(rows[ENSEMBLE])
            entropy.append(-(p * teacher).nan_to_num(0.0).sum(dim=1).cpu().numpy())
            if chosen is not None:
                chosen.look(done + begin, log_q, {name: rows[name][:, KL] for name in log_q}, entropy[-1])
        done += len(labels)
        advance(done)
    scores = {name: _scores(tally.rows, tally.seconds, _parameters(tally.model)) for name, tally in tallies.items()}
    if mean:
        seconds, parameters = (
            sum(getattr(scores[name], key) for name in teachers) for key in ("seconds", "parameters")
        )
        scores = {ENSEMBLE: _scores(mean, seconds, parameters)} | scores
    return Scored(scores, np.concatenate(entropy).astype(np.float64) if entropy else None)


def _timed(tally: _Tally, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    begun = time.perf_counter()
    value = function(*arguments)
    if value.is_cuda:
        torch.cuda.synchronize(value.device)
    tally.seconds += time.perf_counter() - begun
    return value


def _hidden(tally: _Tally, batch: Any, scored: Tensor) -> Tensor:
    device = tally.head.weight.device
    inputs = (batch.input_ids, batch.position_ids, batch.present)
    ids, positions, present = (torch.from_numpy(array).to(device) for array in inputs)
    features = None if batch.features is None else torch.from_numpy(batch.features).to(device)
    hidden = tally.body(ids, positions, present, features)
    return hidden[scored.to(device)]


def _logits(head: parts.Head, hidden: Tensor) -> Tensor:
    return head.logits(hidden)


def _rows(own: Tensor, teacher: Tensor | None, p: Tensor | None, labels: Tensor) -> Tensor:
    """[n, V] log-probabilities, its own and the teacher's, whose exp is p -> [n, 5]: the columns of `Scores`."""
    confidence, best = own.max(dim=1)
    if teacher is None or p is None:
        kl = agrees = torch.full_like(confidence, torch.nan)
    else:
        # Heads padded to different sizes for one tokenizer are compared on the ids they share.
        shared = min(own.shape[1], teacher.shape[1])
        kl = (p[:, :shared] * (teacher[:, :shared] - own[:, :shared])).nan_to_num(0.0).sum(dim=1)
        agrees = (best == teacher.argmax(dim=1)).float()
    return torch.stack(
        [
            -own.gather(1, labels[:, None]).squeeze(1),
            kl,
            agrees,
            (best == labels).float(),
            confidence.exp(),
        ],
        dim=1,
    )


def _scores(rows: list[np.ndarray], seconds: float, parameters: int) -> Scores:
    columns = np.concatenate(rows).astype(np.float64).T
    return Scores(columns[0], columns[1], columns[2], columns[3] > 0.5, columns[4], seconds, parameters)


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
