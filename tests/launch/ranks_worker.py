"""A rank of `test_watch`: joins the others, takes some collectives, then does what is asked of it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from distributed_kd.errors import DkdError, RequestError
from distributed_kd.launch.group import joined_ranks, print_line
from distributed_kd.store.filesystem import Store


def main(minutes: float, folder: Path, deeds: dict[int, str]) -> None:
    import torch

    deed = deeds.get(int(os.environ["RANK"]), "go on")
    try:
        with joined_ranks(minutes, print_line, debug=False) as watch:
            for step in range(1_000_000):
                torch.distributed.all_reduce(torch.ones(1))
                if step < 3:
                    continue
                (folder / str(watch.rank)).touch()
                if deed == "refuse":
                    raise RequestError("this is not to be")
                if deed == "fail":
                    raise ValueError("a mistake")
                if deed == "hang":
                    Store(str(folder)).read("pipe")  # which nobody writes to
                if deed == "work long" and step == 3:
                    time.sleep(60 * minutes * 0.8)
                time.sleep(0.05)
                # All or none: a rank that has finished takes no part in the next collective.
                ended = torch.tensor([float((folder / "finish").exists())])
                torch.distributed.broadcast(ended, 0)
                if ended.item():
                    break
    except DkdError as error:
        print(f"dkd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    said = dict(argument.split("=") for argument in sys.argv[3:])
    main(float(sys.argv[1]), Path(sys.argv[2]), {int(rank): deed for rank, deed in said.items()})
