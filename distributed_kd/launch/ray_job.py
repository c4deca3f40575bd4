"""`dkd submit`: a stage as a Ray job, through the entry point in `jobs/`, on a cluster that has the dependencies.

The job's working directory is the package, the entry points and the resolved recipe, so that the code that runs is
the code that submitted it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from distributed_kd import console
from distributed_kd.bundled import PACKAGE, bundled
from distributed_kd.errors import RequestError, WorkError
from distributed_kd.recipe import Recipe, dump
from distributed_kd.store.filesystem import Store


def submit_stage(stage: str, recipe: Recipe, address: str, follow: bool) -> dict[str, Any]:
    """Submits and, with `follow`, prints the job's log until it ends.

    Raises `RequestError` when no cluster answers, and when the job failed what the stage itself would have raised.
    Returns its id and status.
    """
    entry_points = sorted(path.stem for path in bundled("jobs").glob("*.py"))
    if stage not in entry_points:
        raise RequestError(f"there is no stage {stage!r} to submit; it is one of {', '.join(entry_points)}")
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(
            f"no Ray cluster takes jobs at {address} ({reason}); start one or check --address"
        ) from error
    with tempfile.TemporaryDirectory(prefix="dkd-job-") as folder:
        _fill(Path(folder), stage, recipe)
        job = client.submit_job(
            entrypoint=f"python jobs/{stage}.py recipe.yaml",
            runtime_env={"working_dir": folder, "env_vars": {"PYTHONPATH": "."}},
        )
    console.say(f"submitted {job} to {address}")
    if follow:
        _follow(client, job)
    status = client.get_job_status(job)
    if str(status) in ("FAILED", "STOPPED"):
        info = client.get_job_info(job)
        reason = _last_word(client, job) or " ".join((info.message or "").splitlines()[:1])
        kind = RequestError if info.driver_exit_code == RequestError.exit_code else WorkError
        raise kind(f"job {job} {str(status).lower()}: {reason}")
    return {"job": job, "status": str(status), "workdir": recipe.workdir}


def _fill(folder: Path, stage: str, recipe: Recipe) -> None:
    shutil.copytree(PACKAGE, folder / "distributed_kd", ignore=shutil.ignore_patterns("__pycache__", "jobs", "recipes"))
    (folder / "jobs").mkdir()
    shutil.copy(bundled(f"jobs/{stage}.py"), folder / "jobs" / f"{stage}.py")
    (folder / "recipe.yaml").write_text(dump(_absolute(recipe)), encoding="utf-8")


def _absolute(recipe: Recipe) -> Recipe:
    """The same recipe from any directory: local paths that exist here become absolute."""

    def absolute(path: str) -> str:
        return os.path.abspath(path) if "://" not in path and os.path.exists(path) else path

    corpus, student = recipe.corpus, recipe.student
    store = Store(recipe.workdir)
    return recipe.model_copy(
        update={
            "workdir": store.root if store.is_local else recipe.workdir,
            "corpus": corpus.model_copy(
                update={
                    "source": [absolute(source) for source in corpus.sources],
                    "tokenizer": corpus.tokenizer and absolute(corpus.tokenizer),
                }
            ),
            "teachers": [teacher.model_copy(update={"model": absolute(teacher.model)}) for teacher in recipe.teachers],
            "student": student.model_copy(update={"model": student.model and absolute(student.model)}),
        }
    )


def _follow(client: Any, job: str) -> None:
    import asyncio

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            console.console().print(lines, end="", markup=False, soft_wrap=True)

    asyncio.run(tail())


def _last_word(client: Any, job: str) -> str:
    """The job's own last `dkd:` line: why it stopped."""
    said = [line for line in client.get_job_logs(job).splitlines() if line.startswith("dkd: ")]
    return said[-1].removeprefix("dkd: ") if said else ""
