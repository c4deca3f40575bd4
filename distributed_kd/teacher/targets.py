"""Choosing what to keep of a teacher's distribution: one function for each target method.

    top_k   the k most probable ids: most of the mass in the fewest bytes; what is not kept is one outcome, the tail
    top_p   as many of them as hold p together at T = 1 (at most k): fewer where the teacher is certain
    sample  ids drawn by their probability, kept with their counts: the mean over draws is the whole distribution, tail
            included (Anshumann et al., "Sparse Logit Sampling", ACL 2025), where a top-k teacher has no opinion on it
    full    every id, for vocabularies of hundreds

All of it stays on the device that the logits are on; `DeviceTargets.to_host` waits for it, `host_copy.py` does not.

Shapes: n positions of a chunk, V vocabulary, K kept ids, G temperatures, D draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distributed_kd.cache.soft_targets import NO_ID, SoftTargets
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.recipe import Targets
from distributed_kd.store.digest import fingerprint


@dataclass(frozen=True)
class DeviceTargets:
    """`SoftTargets` as tensors, on the device that they were computed on."""

    ids: Tensor  # [n, K] int32
    logits: Tensor  # [n, K] float32
    tail_odds: Tensor  # [n, G] float32
    temperatures: tuple[float, ...]
    log_p: Tensor | None = None  # [n, G, K] float32
    hidden: Tensor | None = None  # [n, D] of `targets.hidden.dtype`

    def to_host(self) -> SoftTargets:
        log_p = None if self.log_p is None else self.log_p.cpu().numpy()
        hidden = None if self.hidden is None else _numpy_of(self.hidden)
        ids, logits, tail_odds = (tensor.cpu().numpy() for tensor in (self.ids, self.logits, self.tail_odds))
        return SoftTargets(ids, logits, tail_odds, self.temperatures, log_p, hidden)


def choose(
    logits: Tensor, targets: Targets, numbers: np.ndarray | None = None, hidden: Tensor | None = None
) -> DeviceTargets:
    """[n, V] float32 logits, which are overwritten, to the soft targets of the recipe's method.

    numbers: [n, draws] what `sample` draws by (see `numbers_of`). hidden: [n, D], kept with `targets.hidden`.
    """
    temperatures = tuple(targets.temperatures)
    if targets.method == "full":
        chosen = full(logits, temperatures)
    elif targets.method == "sample":
        assert numbers is not None
        chosen = sample(logits, numbers, temperatures, targets.drawn_at)
    else:
        chosen = top_k(logits, targets.k, temperatures, 1.0 if targets.p is None else targets.p)
    if targets.hidden is None:
        return chosen
    assert hidden is not None
    return replace(chosen, hidden=hidden.to(getattr(torch, targets.hidden.dtype)))


def top_k(logits: Tensor, k: int, temperatures: tuple[float, ...], p: float = 1.0) -> DeviceTargets:
    """The k most probable ids, of these as many as hold p at T = 1, and the tail's odds at each temperature.

    `logits` [n, V] is overwritten. The tail is a logsumexp over the ids that are not kept; 1 - mass would cancel.
    """
    if logits.is_cuda:
        return top_k_on_device(logits, k, temperatures, p)
    values, ids = torch.topk(logits, k, dim=1)
    relative = values - values[:, :1]
    logits.sub_(values[:, :1])
    dropped = torch.zeros_like(ids, dtype=torch.bool)
    if p < 1.0:
        dropped = _beyond(relative, torch.logsumexp(logits, dim=1, keepdim=True), p)
    rest = logits.scatter_(1, ids, relative.masked_fill(~dropped, -torch.inf))
    ids, relative = ids.masked_fill(dropped, NO_ID), relative.masked_fill(dropped, -torch.inf)
    odds = []
    for place, temperature in enumerate(temperatures, start=1):
        own = rest if place == len(temperatures) else rest.clone()
        odds.append(_logsumexp_(own.div_(temperature)) - torch.logsumexp(relative / temperature, dim=1))
    return DeviceTargets(ids.to(torch.int32), relative, torch.stack(odds, dim=1), temperatures)


def top_k_on_device(logits: Tensor, k: int, temperatures: tuple[float, ...], p: float = 1.0) -> DeviceTargets:
    """`top_k` by kernels for GPUs: the same targets but for rounding and the order of equal logits."""
    from distributed_kd.teacher.device_top_k import largest, log_rests

    values, ids = largest(logits, k)
    relative = values - values[:, :1]
    at_one, rests = log_rests(logits, ids, values[:, 0], temperatures)
    dropped = torch.zeros_like(ids, dtype=torch.bool)
    if p < 1.0:
        dropped = _beyond(relative, torch.logaddexp(at_one, relative.logsumexp(dim=1))[:, None], p)
    ids, kept = ids.masked_fill(dropped, NO_ID), relative.masked_fill(dropped, -torch.inf)
    odds = []
    for temperature, rest in zip(temperatures, rests, strict=True):
        if p < 1.0:
            rest = torch.logaddexp(rest, (relative.masked_fill(~dropped, -torch.inf) / temperature).logsumexp(dim=1))
        odds.append(rest - torch.logsumexp(kept / temperature, dim=1))
    return DeviceTargets(ids.to(torch.int32), kept, torch.stack(odds, dim=1), temperatures)


def _beyond(logits: Tensor, log_total: Tensor, p: float) -> Tensor:
    """[n, K] falling logits of the kept ids, and [n, 1] the logsumexp of all: those before which p is held already."""
    mass = (logits - log_total).exp()
    return mass.cumsum(dim=1) - mass >= p


def full(logits: Tensor, temperatures: tuple[float, ...]) -> DeviceTargets:
    """Every id, rising; no tail. `logits` [n, V] is overwritten."""
    positions, vocabulary = logits.shape
    logits.sub_(logits.amax(dim=1, keepdim=True))
    ids = torch.arange(vocabulary, dtype=torch.int32, device=logits.device).expand(positions, vocabulary)
    return DeviceTargets(ids, logits, _no_tail(logits, temperatures), temperatures)


def sample(logits: Tensor, numbers: np.ndarray, temperatures: tuple[float, ...], drawn_at: float) -> DeviceTargets:
    """The ids that `numbers` [n, D], uniform in [0, 1), draw from p at temperature `drawn_at`, with their counts.

    The estimate of p_T(i) is count_i / D * p_T(i) / p_drawn_at(i): its mean over draws is p_T(i) at every id, so the
    mean gradient of a KL with these targets is that of the whole distribution. Where T is `drawn_at` the weight is 1;
    other temperatures get a `log_p` of their own. K = min(D, V). `logits` [n, V] is overwritten. Where they are not
    finite the tail's odds are NaN.
    """
    logits.sub_(logits.amax(dim=1, keepdim=True))
    cumulative = torch.cumsum((logits.double() / drawn_at).exp_(), dim=1)
    # In (0, total]: the first id whose sum reaches the number then has a probability above 0.
    reached = (1.0 - torch.from_numpy(numbers).to(logits.device)) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, reached).clamp_(max=logits.shape[1] - 1).sort(dim=1).values
    ids, counts = (array[:, : logits.shape[1]] for array in _run_lengths(drawn))
    shares = drawn_at * (counts / counts[:, :1]).log()
    log_p = None
    if temperatures != (drawn_at,):
        at_drawn = logits.gather(1, ids.clamp(min=0)).double()
        log_counts = (counts / drawn.shape[1]).log() - (at_drawn / drawn_at - cumulative[:, -1:].log())
        estimates = [log_counts + at_drawn / t - torch.logsumexp(logits / t, 1, keepdim=True) for t in temperatures]
        log_p = torch.stack([own.masked_fill(ids < 0, -torch.inf) for own in estimates], dim=1).float()
    odds = _no_tail(logits, temperatures).masked_fill(~cumulative[:, -1:].isfinite(), torch.nan)
    return DeviceTargets(ids.to(torch.int32), shares.float(), odds, temperatures, log_p)


def numbers_of(targets: Targets, sequences: list[Sequence]) -> np.ndarray | None:
    """[positions, D] float64 in [0, 1) for `sample`, sequence by sequence; None for the other methods.

    A function of the recipe's seed and the sequence alone: however batches are formed, a sequence draws the same ids.
    """
    if targets.draws is None:
        return None
    drawn = []
    for sequence in sequences:
        key = int(fingerprint({"seed": targets.seed, "sequence": sequence.sequence_id})[:32], 16)
        raw = np.random.Philox(key=key).random_raw(sequence.positions * targets.draws)
        drawn.append((raw >> np.uint64(11)).reshape(sequence.positions, targets.draws) * 2.0**-53)
    return np.concatenate(drawn)


def _logsumexp_(x: Tensor) -> Tensor:
    """torch.logsumexp over the last dimension, to the bit, for a tensor that is not needed afterwards.

    It takes no second tensor of that size, and on a CPU a third of the time. [n, V] -> [n]; -inf where all are.
    """
    largest = x.amax(dim=1, keepdim=True)
    largest.masked_fill_(largest.isinf(), 0.0)
    return x.sub_(largest).exp_().sum(dim=1).log_().add_(largest[:, 0])


def _run_lengths(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """[n, D] rising ids -> (each once [n, D], the most frequent first, then NO_ID; how often, 0 there)."""
    is_first = torch.ones_like(drawn, dtype=torch.bool)
    is_first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    place = is_first.cumsum(dim=1) - 1
    counts = torch.zeros_like(drawn).scatter_add_(1, place, torch.ones_like(drawn))
    ids = torch.full_like(drawn, NO_ID).scatter_(1, place, drawn)
    order = torch.argsort(counts, dim=1, descending=True, stable=True)
    return ids.gather(1, order), counts.gather(1, order)


def _numpy_of(hidden: Tensor) -> np.ndarray:
    """[n, D] as `cache/hidden.py` carries it."""
    host = hidden.cpu()
    return (host.view(torch.uint16) if host.dtype == torch.bfloat16 else host).numpy()


def _no_tail(logits: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    return logits.new_full((len(logits), len(temperatures)), -torch.inf)
