"""DeepSpeed's universal checkpoint: what ranks have divided among them, made whole for another number of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from distributed_kd.errors import WorkError


def convert(source: Path, target: Path) -> None:
    """Makes the whole one, `target`, of a checkpoint; it appears once it is complete. Raises `WorkError`."""
    temporary = target.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    command = [
        sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(source),
        "--output_folder", str(temporary), "--num_extract_workers", "1", "--num_merge_workers", "1",
        "--inject_missing_state",
    ]  # fmt: skip
    alone = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(command, capture_output=True, text=True, env=alone)
    if done.returncode:
        raise WorkError(
            f"checkpoint {source} was written by another number of ranks and DeepSpeed cannot convert it "
            f"({done.stderr.strip().splitlines()[-1][:200]}); go on with as many, or delete it"
        )
    (source.parent / "latest_universal").unlink(missing_ok=True)
    temporary.rename(target)
