"""The fused distillation loss beside plain cross-entropy and dense KL, forward and backward, on the same hidden states.

    python benchmarks/objective.py [--positions 2048 --hidden 576 --vocabulary 49152 --k 64] [--json]

Ways alternate within a round, one thread; `time_ratio` and `memory_ratio` are medians over rounds, against the best
plain cross-entropy of the same round ("cross-entropy" rows: full logits, torch's chunked linear_cross_entropy, and our
own path on hard labels alone). Memory is the peak above what is there before, in a process of its own; `chunks` of it
is in units of one chunk x V floats, the weight's gradient taken off. Rows beginning with "fused" are ours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from distributed_kd.models.parts import Head
from distributed_kd.student import divergence
from distributed_kd.student.objective import PositionTargets, linear_distillation_loss

F = torch.nn.functional
PLAIN = ("cross-entropy, full logits", "cross-entropy, torch chunked", "fused, hard labels")


def make_case(options: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor, PositionTargets, Tensor]:
    """Hidden states, head weight, targets and the teacher's dense log-probabilities (only where there is room)."""
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
    return hidden.to(device, dtype), weight.to(device, dtype), targets, ids


def ways(options: argparse.Namespace, targets: PositionTargets) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    def dense_kl(hidden: Tensor, weight: Tensor) -> Tensor:
        p = torch.full((len(hidden), len(weight)), 0.13 / len(weight), device=hidden.device)
        p.scatter_add_(1, targets.ids, targets.log_p.exp())
        log_q = (hidden @ weight.T).float().log_softmax(dim=1)
        return 0.5 * F.kl_div(log_q, p, reduction="sum") + 0.5 * F.nll_loss(log_q, targets.labels, reduction="sum")

    def ours(alpha: float, temperature: float = 1.0, name: str = "forward_kl") -> Callable[[Tensor, Tensor], Tensor]:
        def loss(hidden: Tensor, weight: Tensor) -> Tensor:
            return linear_distillation_loss(
                hidden, Head(weight), targets, temperature=temperature, alpha=alpha, chunk=options.chunk,
                divergence=divergence.find(name),
            ).total  # fmt: skip

        return loss

    chunked = torch.nn.LinearCrossEntropyOptions()
    return {
        PLAIN[0]: lambda h, w: F.cross_entropy((h @ w.T).float(), targets.labels, reduction="sum"),
        PLAIN[1]: lambda h, w: F.linear_cross_entropy(h, w, targets.labels, reduction="sum", options=chunked),
        PLAIN[2]: ours(0.0),
        "fused": ours(0.5),
        "fused, T = 2": ours(0.5, 2.0),
        "fused, soft targets alone": ours(1.0),
        "fused, reverse KL": ours(0.5, name="reverse_kl"),
        "dense KL, full logits": dense_kl,
    }


def once(loss: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor) -> float:
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    _wait()
    begun = time.perf_counter()
    loss(hidden, weight).backward()
    _wait()
    return time.perf_counter() - begun


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(options: argparse.Namespace, name: str) -> int:
    """Bytes above what was there before, of one forward and backward in a fresh process."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", name], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout.split()[-1])


def only(options: argparse.Namespace, device: torch.device) -> None:
    hidden, weight, targets, _ = make_case(options, device)
    loss = ways(options, targets)[options.only]
    small = PositionTargets(*(t[:8] for t in (targets.labels, targets.ids, targets.log_p, targets.log_p_tail)))
    once(ways(options, small)[options.only], hidden[:8], weight)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(loss, hidden, weight)
        print(torch.cuda.max_memory_allocated() - before)
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (proc(5))
    before = _status("VmRSS")
    once(loss, hidden, weight)
    print(_status("VmHWM") - before)


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def report(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    hidden, weight, targets, _ = make_case(options, device)
    every = ways(options, targets)
    for loss in every.values():
        once(loss, hidden, weight)
    rounds = [{name: once(loss, hidden, weight) for name, loss in every.items()} for _ in range(options.rounds)]
    peaks = {name: peak(options, name) for name in every}
    weight_gradient = weight.numel() * weight.element_size()
    best = min(peaks[name] for name in PLAIN)
    rows = [
        {
            "name": name,
            "milliseconds": 1e3 * statistics.median(own[name] for own in rounds),
            "time_ratio": statistics.median(own[name] / min(own[plain] for plain in PLAIN) for own in rounds),
            "of_full_logits": statistics.median(own[name] / own[PLAIN[0]] for own in rounds),
            "memory_ratio": peaks[name] / best,
            "chunks": (peaks[name] - weight_gradient) / (options.chunk * options.vocabulary * 4),
        }
        for name in every
    ]
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, one thread"
    return {
        "machine": f"{machine}, load {os.getloadavg()[0]:.1f}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "shape": {key: getattr(options, key) for key in ("positions", "hidden", "vocabulary", "k", "chunk", "dtype")},
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
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
    print(f"{found['machine']}; torch {found['versions']['torch']}; {found['shape']}")
    print(f"{'':30} {'ms':>8} {'of best':>8} {'of full':>8} {'memory':>8} {'chunks':>7}")
    for row in found["rows"]:
        numbers = f"{row['milliseconds']:8.0f} {row['time_ratio']:8.3f} {row['of_full_logits']:8.3f}"
        print(f"{row['name']:30} {numbers} {row['memory_ratio']:8.2f} {row['chunks']:7.2f}")


if __name__ == "__main__":
    main()
