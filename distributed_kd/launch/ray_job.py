"""`dkd submit`: a stage as a Ray job, through the entry point in `jobs/`, on a cluster that has the dependencies."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from distributed_kd import console
from distributed_kd.errors import RequestError, WorkError
from distributed_kd.launch.job_folder import job_folder
from distributed_kd.launch.runtime_env import runtime_env
from distributed_kd.recipe import Recipe


def what_is_sent(stage: str, recipe: Recipe, address: str, environment: str | None) -> dict[str, Any]:
    """All that `submit_stage` would give to Ray, and what it leaves out; no cluster is asked."""
    made, env = job_folder(stage, recipe), runtime_env(environment)
    return {
        "address": address,
        "entrypoint": made.entrypoint,
        "runtime_env": env,
        "recipe.yaml": yaml.safe_load(made.recipe),
        "working_dir": {"bytes": sum(made.sizes.values()), "files": made.sizes, "excluded": made.excluded},
    }


def submit_stage(stage: str, recipe: Recipe, address: str, follow: bool, environment: str | None) -> dict[str, Any]:
    """Submits and, with `follow`, prints the job's log until it ends. environment: a file of Ray's `runtime_env`.

    Raises `RequestError` when no cluster answers, and when the job failed what the stage itself would have raised.
    Returns its id and status.
    """
    made, env = job_folder(stage, recipe), runtime_env(environment)
    from ray.job_submission import JobSubmissionClient

    try:
        with console.waiting(f"submit: asking {address}"):
            client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(
            f"no Ray cluster takes jobs at {address} ({reason}); start one or check --address"
        ) from error
    size = f"{len(made.sizes)} files, {sum(made.sizes.values()) / 2**20:.1f} MiB"
    uploading = console.waiting(f"submit: uploading {size} to {address}")
    with tempfile.TemporaryDirectory(prefix="dkd-job-") as folder, uploading:
        made.write(Path(folder))
        job = client.submit_job(entrypoint=made.entrypoint, runtime_env=env | {"working_dir": folder})
    console.say(f"submitted {job} to {address}: {size}; {len(made.excluded)} left out (--dry-run names them)")
    if follow:
        _follow(client, job, address)
    status = client.get_job_status(job)
    if str(status) in ("FAILED", "STOPPED"):
        info = client.get_job_info(job)
        reason = _last_word(client, job) or " ".join((info.message or "").splitlines()[:1])
        kind = RequestError if info.driver_exit_code == RequestError.exit_code else WorkError
        raise kind(f"the Ray job {job} has {str(status).lower()}: {reason}")
    return {"job": job, "status": str(status), "workdir": recipe.workdir}


def _follow(client: Any, job: str, address: str) -> None:
    import asyncio

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            console.console().print(lines, end="", markup=False, soft_wrap=True)

    try:
        asyncio.run(tail())
    except KeyboardInterrupt:
        console.say(f"the job goes on; to end it: ray job stop --address {address} {job}")
        raise


def _last_word(client: Any, job: str) -> str:
    """The job's own last `dkd:` line: why it stopped."""
    said = [line for line in client.get_job_logs(job).splitlines() if line.startswith("dkd: ")]
    return said[-1].removeprefix("dkd: ") if said else ""
