"""A rank that starts as a training's does and adds one number over all ranks, for `dkd doctor`.

DeepSpeed compiles what it needs for its collectives here, as it would at the start of a training.
"""

from __future__ import annotations

import os
from datetime import timedelta

from distributed_kd.launch.abandoned_builds import remove_abandoned_locks


def main() -> None:
    import torch

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    import deepspeed

    remove_abandoned_locks()
    deepspeed.init_distributed("nccl" if cuda else "gloo", timeout=timedelta(seconds=60))
    one = torch.ones(1, device="cuda" if cuda else "cpu")
    torch.distributed.all_reduce(one)
    assert one.item() == torch.distributed.get_world_size()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
