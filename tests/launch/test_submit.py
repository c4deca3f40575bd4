"""`dkd submit` against a real Ray head on this machine: the log is followed, and the job's result is ours."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.job_submission import JobSubmissionClient

from tests.buckets import free_port
from tests.commands import AT_ONCE, ROOT, dkd, said, write_recipe
from tests.disturbed import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard address of a `ray start --head`, in a session of its own, so that ending it ends nothing else."""
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        "DKD_TESTS_SECRET": "said on the node",
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
    }
    process = subprocess.Popen(
        [
            Path(sys.executable).parent / "ray", "start", "--head", "--block", "--num-cpus", "2",
            "--port", str(free_port()), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(port),
            "--dashboard-agent-listen-port", str(free_port()), "--disable-usage-stats", "--include-dashboard", "true",
        ],
        env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=1)
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline, "the Ray head did not come up"
            time.sleep(0.3)
    yield address
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_stages_run_as_jobs_and_a_refusal_comes_back(head: str, toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, toy_recipe)

    failed = dkd("submit", "cache", recipe, "--address", head, RAY_AUTH_MODE="disabled")
    assert failed.returncode == 2, "the job's own exit code is ours"
    assert "holds no finished sequences; run `dkd prepare` first" in said_last(failed.stderr)

    environment = tmp_path / "runtime_env.yaml"
    environment.write_text("env_vars: {HF_TOKEN: '${DKD_TESTS_SECRET}', DKD_ABSENT_KEY: '${DKD_TESTS_NOT_SET}'}")
    given = ("submit", "prepare", recipe, "--address", head, "--runtime-env", environment)
    planned = json.loads(dkd(*given, "--dry-run", "--json").stdout)
    begun = dkd(*given, "--no-follow", "--json")
    assert begun.returncode == 0, begun.stderr
    client = JobSubmissionClient(head)
    job = client.get_job_info(json.loads(begun.stdout)["job"])
    assert job.entrypoint == planned["entrypoint"]
    assert job.runtime_env is not None
    assert job.runtime_env.pop("working_dir").startswith("gcs://")
    assert job.runtime_env == planned["runtime_env"], "a dry run shows what is sent"
    asking = client.submit_job(entrypoint="echo [$HF_TOKEN] [$DKD_ABSENT_KEY]", runtime_env=planned["runtime_env"])
    for one, says in ((asking, "[said on the node] []"), (str(job.submission_id), "fingerprint")):
        until(lambda one=one: client.get_job_status(one).is_terminal(), "a job", 120.0)
        assert client.get_job_status(one) == "SUCCEEDED", client.get_job_logs(one)
        assert says in client.get_job_logs(one)

    given = ("submit", "cache", recipe, "--address", head)
    done = dkd(*given, program=AT_ONCE, RAY_AUTH_MODE="disabled")
    assert done.returncode == 0, done.stderr
    assert "SUCCEEDED" in done.stdout
    assert re.search(rf"^submit: uploading \d+ files, .* MiB to {head}$", done.stderr, re.MULTILINE), done.stderr
    assert "positions" in done.stderr, "the job's own log was not followed"
    facts = json.loads(dkd("inspect", Path(toy_recipe["workdir"]) / "cache", "--json").stdout)
    assert facts["missing_shards"] == []
    done = submitted_without_dkd(head, recipe, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert facts["fingerprint"][:40] in done.stdout, "it is the same command, and finds the cache done"

    done = dkd("submit", "train", recipe, "trainer.workers=2", "--address", head, RAY_AUTH_MODE="disabled")
    assert done.returncode == 0, done.stderr
    for arm in ("student", "baseline"):
        assert (Path(toy_recipe["workdir"]) / arm / "manifest.json").exists()
        assert not (Path(toy_recipe["workdir"]) / arm / "train.log").exists(), "these are ranks of one host"


def submitted_without_dkd(head: str, recipe: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The line in infra/ray/runtime_env.yaml, in a checkout, with this recipe and the packages of this machine."""
    file = ROOT / "infra" / "ray" / "runtime_env.yaml"
    line = next(line for line in file.read_text().splitlines() if "ray job submit" in line)
    environment = yaml.safe_load(file.read_text())
    del environment["pip"]
    (folder / "without_pip.yaml").write_text(yaml.safe_dump(environment))
    given = {
        "http://HEAD:8265": head, "infra/ray/runtime_env.yaml": str(folder / "without_pip.yaml"),
        "recipes/cluster.yaml": str(recipe),
    }  # fmt: skip
    words = shlex.split(line.lstrip("# "))
    assert given.keys() <= set(words)
    ray, *arguments = [given.get(word, word) for word in words]
    own = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PYTHONPATH")}
    return subprocess.run(
        [Path(sys.executable).parent / ray, *arguments],
        env=own | {"RAY_AUTH_MODE": "disabled"}, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def said_last(stderr: str) -> str:
    return [line for line in stderr.splitlines() if line.startswith("dkd: ")][-1]


def test_what_cannot_be_submitted_is_one_line(head: str, toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, toy_recipe)
    done = dkd("submit", "bake", recipe, "--address", head)
    assert done.returncode == 2
    assert "there is no stage 'bake' to submit" in said(done)
    done = dkd("submit", "cache", recipe, "--address", f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 2
    assert "no Ray cluster takes jobs at" in said(done)
