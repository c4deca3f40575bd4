"""The other devices of a teacher that is larger than one: a process for each, on the same host.

transformers divides the model over a process group by the plan of its architecture (tensor parallelism), and every
rank must then go through the same batches. Rank 0 is the replica itself; it sends each batch to its peers over their
standard input, runs its own part, and alone sees the logits. A peer ends when its input does. It dies with the replica,
and the replica with it: half a teacher can only wait for the other half.

`python -m distributed_kd.teacher.peers` is a peer; nothing else starts one.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch

from distributed_kd.corpus.batch import Batch
from distributed_kd.models.load import choose_device
from distributed_kd.recipe import Capture, Teacher
from distributed_kd.teacher.network import Network, Outputs

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LAST_WORDS_SECONDS = 1.0  # in which an error that is on its way still leaves the replica


class Peers:
    """Starts ranks 1 to `devices_per_replica` - 1 and joins them as rank 0."""

    def __init__(self, teacher: Teacher, capture: Capture) -> None:
        meeting = tempfile.mkdtemp(prefix="dkd-peers-") + "/meeting"
        self._processes = [
            subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=sys.stderr)
            for _ in range(1, teacher.devices_per_replica)
        ]
        for rank, process in enumerate(self._processes, start=1):
            own = {"teacher": teacher.model_dump(), "capture": capture.model_dump(), "meeting": meeting, "rank": rank}
            _put(process, own)
            threading.Thread(target=_end_with, args=(process,), daemon=True).start()
        _join(meeting, 0, teacher.devices_per_replica)

    def together(self, chunks: Iterator[Outputs], batch: Batch) -> Iterator[Outputs]:
        """Rank 0's `chunks` of a batch that all peers run too. All are run, also where the caller stops early.

        An error of rank 0's own leaves the peers in the middle of something: they are ended, and so the replica is.
        """
        fields = np.stack([batch.input_ids, batch.position_ids, batch.present, batch.loss_mask], dtype=np.int64)
        for process in self._processes:
            _put(process, {"shape": fields.shape}, fields.tobytes())
        try:
            for outputs in chunks:  # noqa: UP028 - closing this generator must not close that one
                yield outputs
        except GeneratorExit:
            for _ in chunks:
                pass
            raise
        except Exception:
            for process in self._processes:
                process.kill()
            raise


def _put(process: subprocess.Popen[bytes], line: dict[str, Any], data: bytes = b"") -> None:
    """A line of JSON, then the bytes that it speaks of: what a peer reads."""
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(line).encode() + b"\n" + data)
        process.stdin.flush()
    except BrokenPipeError:
        os._exit(1)  # as in `_end_with`: what follows would fail as well, shard after shard


def _end_with(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    print(f"a peer of this replica ended with {process.returncode}; the replica ends too", file=sys.stderr, flush=True)
    time.sleep(_LAST_WORDS_SECONDS)
    os._exit(1)


def _join(meeting: str, rank: int, size: int) -> None:
    os.environ["LOCAL_RANK"] = str(rank)  # where transformers looks for this rank's device
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this host, whose name may not resolve
    cuda = choose_device().type == "cuda"
    if cuda:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(hours=2),
    )  # fmt: skip


def _follow() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    stream = sys.stdin.buffer
    own = json.loads(stream.readline())
    teacher, capture = Teacher(**own["teacher"]), Capture(**own["capture"])
    torch.set_num_threads(capture.threads)
    _join(own["meeting"], own["rank"], teacher.devices_per_replica)
    network = Network(teacher, capture, own["rank"])
    while line := stream.readline():
        shape = json.loads(line)["shape"]  # [4, B, S] int64
        data = stream.read(8 * int(np.prod(shape)))
        input_ids, position_ids, present, loss_mask = np.frombuffer(data, np.int64).reshape(shape).copy()
        labels = np.empty(0, np.int64)
        batch = Batch(input_ids, position_ids, present.astype(bool), loss_mask.astype(bool), labels)
        for _ in network.outputs(batch):
            pass


if __name__ == "__main__":
    _follow()
