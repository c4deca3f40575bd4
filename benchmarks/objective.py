"""The fused distillation loss beside plain cross-entropy and dense KL, forward and backward, on the same hidden states.

    python benchmarks/objective.py [--positions 2048 --hidden 576 --vocabulary 49152 --k 64] [--json]

Ways alternate within a round, on the CPU on one thread, by its processor time; `time_ratio` and `memory_ratio` are
medians over rounds, against the best plain cross-entropy of the same round: full logits, torch's chunked
linear_cross_entropy, our own path on hard labels alone, and on a GPU Liger's and Apple's where they are installed
(`liger-kernel`, `cut-cross-entropy`). "the head's products alone" is no loss: the logits and both gradients' products,
a chunk at a time, which every loss over a head takes. Memory is the peak above what is there before, on the CPU in a
process of its own; `chunks` of it is in units of one chunk x V floats, the weight's gradient taken off. Rows beginning
with "fused" are ours; of a frozen head there is no weight's gradient. `errors` are relative errors of our gradients, in
norm, against float64 on some of the positions.

On a GPU: --positions 8192 --hidden 4096 --vocabulary 128256 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from process_memory import forget_peak, memory
from torch import Tensor

from distributed_kd.models.parts import Head
from distributed_kd.student import divergence
from distributed_kd.student.objective import chunk_for, linear_distillation_loss
from distributed_kd.student.position_targets import PositionTargets

F = torch.nn.functional
FULL = "cross-entropy, full logits"
FROZEN = "fused, frozen head"
PLAIN = (FULL, "cross-entropy, torch chunked", "fused, hard labels", "cross-entropy, Liger", "cross-entropy, Apple")
Way = Callable[[Tensor, Tensor], Tensor]


def make_case(options: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor, PositionTargets]:
    """Hidden states, head weight and targets."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.positions, options.hidden, generator=random)
    weight = torch.randn(options.vocabulary, options.hidden, generator=random) * options.hidden**-0.5
    ids = torch.stack([torch.randperm(options.vocabulary, generator=random)[: options.k] for _ in range(64)])
    ids = ids.repeat(options.positions // 64 + 1, 1)[: options.positions]
    p = torch.rand(options.positions, options.k, generator=random).softmax(dim=1) * 0.87
    labels = torch.randint(0, options.vocabulary, (options.positions,), generator=random)
    tail = torch.full((options.positions,), 0.13).log()
    targets = PositionTargets(labels.to(device), ids.to(device), p.log().to(device), tail.to(device))
    dtype = getattr(torch, options.dtype)
    return hidden.to(device, dtype), weight.to(device, dtype), targets


def ways(options: argparse.Namespace, targets: PositionTargets) -> dict[str, Way]:
    found = {
        FULL: lambda h, w: F.cross_entropy((h @ w.T).float(), targets.labels, reduction="sum"),
        "fused, hard labels": ours(options, targets, 0.0),
        "fused": ours(options, targets, 0.5),
        "fused, T = 2": ours(options, targets, 0.5, 2.0),
        "fused, soft targets alone": ours(options, targets, 1.0),
        "fused, reverse KL": ours(options, targets, 0.5, name="reverse_kl"),
        FROZEN: lambda h, w: ours(options, targets, 0.5)(h, w.detach()),
        "dense KL, full logits": lambda h, w: dense_kl(h, w, targets),
        "the head's products alone": lambda h, w: _Products.apply(h, w, options.chunk or chunk_for(h.device, len(w))),
    }
    if hasattr(F, "linear_cross_entropy"):  # torch 2.13
        chunked = torch.nn.LinearCrossEntropyOptions()
        found[PLAIN[1]] = lambda h, w: F.linear_cross_entropy(h, w, targets.labels, reduction="sum", options=chunked)
    found |= of_others(options, targets) if targets.ids.is_cuda else {}
    return {name: way for name, way in found.items() if not options.ways or name in options.ways}


def ours(
    options: argparse.Namespace, targets: PositionTargets, alpha: float, temperature: float = 1.0,
    name: str = "forward_kl",
) -> Way:  # fmt: skip
    return lambda hidden, weight: linear_distillation_loss(
        hidden, Head(weight), targets, temperature=temperature, alpha=alpha, divergence=divergence.find(name),
        chunk=options.chunk or None,
    ).total  # fmt: skip


class _Products(torch.autograd.Function):
    """Gives as gradients the products with the logits themselves."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, chunk: int) -> Tensor:
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for own, gradient in zip(hidden.split(chunk), of_hidden.split(chunk), strict=True):
            logits = own @ weight.T
            torch.mm(logits, weight, out=gradient)
            of_weight.addmm_(logits.T, own)
        ctx.gradients = of_hidden, of_weight, None
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.gradients


def dense_kl(hidden: Tensor, weight: Tensor, targets: PositionTargets) -> Tensor:
    log_q = (hidden @ weight.T).float().log_softmax(dim=1)
    kl = F.kl_div(log_q, dense(targets, len(weight)), reduction="sum")
    return 0.5 * kl + 0.5 * F.nll_loss(log_q, targets.labels, reduction="sum")


def dense(targets: PositionTargets, vocabulary: int) -> Tensor:
    p = torch.full((len(targets), vocabulary), 0.13 / vocabulary, device=targets.ids.device)
    return p.scatter_add_(1, targets.ids, targets.log_p.exp())


def of_others(options: argparse.Namespace, targets: PositionTargets) -> dict[str, Way]:
    """Other libraries' kernels, as far as they are installed."""
    found: dict[str, Way] = {}
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
        from liger_kernel.transformers.fused_linear_kl_div import LigerFusedLinearKLDivLoss

        cross_entropy, kl = (
            LigerFusedLinearCrossEntropyLoss(reduction="sum"),
            LigerFusedLinearKLDivLoss(reduction="sum"),
        )
        p = dense(targets, options.vocabulary).to(getattr(torch, options.dtype))
        found["cross-entropy, Liger"] = lambda h, w: cross_entropy(w, h, targets.labels)
        found["dense KL, Liger fused linear"] = lambda h, w: kl(h, w, p)
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        found["cross-entropy, Apple"] = lambda h, w: linear_cross_entropy(h, w, targets.labels, reduction="sum")
    return found


def errors(hidden: Tensor, weight: Tensor, targets: PositionTargets) -> dict[str, float]:
    """Relative errors of the gradients of hidden states and weight, against float64 over the same operands."""
    count = min(len(hidden), 2048 if hidden.is_cuda else 64)
    form: dict[str, Any] = {"temperature": 1.0, "alpha": 0.5}
    found = []
    for dtype, more in ((torch.float64, {"impl": "reference"}), (hidden.dtype, {"chunk": count // 4})):
        own = hidden[:count].detach().to(dtype).requires_grad_()
        head = weight.detach().to(dtype).requires_grad_()
        linear_distillation_loss(own, Head(head), targets.rows(0, count), **form, **more).total.backward()
        found.append((own.grad.double(), head.grad.double()))
    return {
        name: ((got - exact).norm() / exact.norm()).item()
        for name, exact, got in zip(("hidden", "weight"), *found, strict=True)
    }


def once(loss: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor) -> float:
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    clock = time.perf_counter if hidden.is_cuda else time.process_time
    _wait()
    begun = clock()
    loss(hidden, weight).backward()
    _wait()
    return clock() - begun


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(name: str, loss: Way, hidden: Tensor, weight: Tensor) -> int:
    """Bytes above what was there before, of one forward and backward; on the CPU in a fresh process."""
    if hidden.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(loss, hidden, weight)
        return torch.cuda.max_memory_allocated() - before
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", name], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout.split()[-1])


def only(options: argparse.Namespace, device: torch.device) -> None:
    hidden, weight, targets = make_case(options, device)
    once(ways(options, targets.rows(0, 8))[options.only], hidden[:8], weight)
    forget_peak()
    before = memory()
    once(ways(options, targets)[options.only], hidden, weight)
    print(memory("VmHWM") - before)


def report(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    hidden, weight, targets = make_case(options, device)
    every = ways(options, targets)
    plain = [name for name in PLAIN if name in every]
    for loss in every.values():
        once(loss, hidden, weight)
    rounds = [{name: once(loss, hidden, weight) for name, loss in every.items()} for _ in range(options.rounds)]
    peaks = {name: peak(name, loss, hidden, weight) for name, loss in every.items()}
    gradients = {name: 0 if name == FROZEN else weight.numel() * weight.element_size() for name in every}
    best = min(peaks[name] for name in plain)
    chunk = options.chunk or chunk_for(device, options.vocabulary)
    rows = [
        {
            "name": name,
            "milliseconds": 1e3 * statistics.median(own[name] for own in rounds),
            "time_ratio": statistics.median(own[name] / min(own[other] for other in plain) for own in rounds),
            "of_full_logits": statistics.median(own[name] / own[FULL] for own in rounds),
            "memory_ratio": peaks[name] / best,
            "peak_bytes": peaks[name],
            "chunks": (peaks[name] - gradients[name]) / (chunk * options.vocabulary * 4),
        }
        for name in every
    ]
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, one thread"
    return {
        "machine": f"{machine}, load {os.getloadavg()[0]:.1f}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "shape": {key: getattr(options, key) for key in ("positions", "hidden", "vocabulary", "k", "dtype")},
        "chunk": chunk,
        "errors": errors(hidden, weight, targets),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=0, help="0: what suits the device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", help="these alone, full logits among them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.only:
        only(options, device)
        return
    found = report(options, device)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['machine']}; torch {found['versions']['torch']}; {found['shape']}, chunk {found['chunk']}")
    print("relative error of our gradients: " + ", ".join(f"{key} {one:.1e}" for key, one in found["errors"].items()))
    print(f"{'':30} {'ms':>8} {'of best':>8} {'of full':>8} {'memory':>8} {'chunks':>7}")
    for row in found["rows"]:
        numbers = f"{row['milliseconds']:8.0f} {row['time_ratio']:8.3f} {row['of_full_logits']:8.3f}"
        print(f"{row['name']:30} {numbers} {row['memory_ratio']:8.2f} {row['chunks']:7.2f}")


if __name__ == "__main__":
    main()
