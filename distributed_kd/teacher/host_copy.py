"""Targets on their way to the host while the teacher goes on.

On a GPU they are copied to pinned memory on a stream of their own, so that neither the host waits for the device nor
the device for the host. At most `_BATCHES_AHEAD` batches are under way: the host would else hand the device a whole
shard at once, and nobody could tell a device that hangs from one that works. On a CPU they are there already.

Shapes: N positions of all chunks, n of one, K kept ids, G temperatures.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.teacher.targets import DeviceTargets

_BATCHES_AHEAD = 2


class HostCopy:
    """Collects the targets of one shard: `add` each chunk, `end_batch` after each batch, then `wait` for all."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._chunks: list[DeviceTargets] = []
        self._under_way: deque[torch.cuda.Event] = deque()

    def add(self, targets: DeviceTargets) -> None:
        """[n] positions, in order."""
        if self._stream is None:
            self._chunks.append(targets)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            log_p = None if targets.log_p is None else self._copied(targets.log_p)
            hidden = None if targets.hidden is None else self._copied(targets.hidden)
            ids, logits, tail_odds = (self._copied(t) for t in (targets.ids, targets.logits, targets.tail_odds))
            self._chunks.append(DeviceTargets(ids, logits, tail_odds, targets.temperatures, log_p, hidden))

    def _copied(self, tensor: Tensor) -> Tensor:
        assert self._stream is not None
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)  # its memory is not given to another tensor before the copy is done
        return host

    def end_batch(self) -> None:
        """Returns once the batches before the last two have arrived."""
        if self._stream is not None:
            self._under_way.append(self._stream.record_event())
            if len(self._under_way) > _BATCHES_AHEAD:
                self._under_way.popleft().synchronize()

    def wait(self) -> SoftTargets:
        """[N] positions, on the host."""
        if self._stream is not None:
            self._stream.synchronize()
        return SoftTargets.concatenate([chunk.to_host() for chunk in self._chunks])
