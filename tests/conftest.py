"""Toy models, tokenizers and corpora, made once a session: small, real, and of a known answer where it matters."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DKD_QUIET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: its kernels run on the CPU

from tests import toys
from tests.buckets import bucket  # noqa: F401 - a fixture
from tests.commands import dkd, write_recipe

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the cache below is slow: half a minute, once in each process that runs tests."""
    for item in items:
        if "prepared_recipe" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def toy_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 4 layers, its head padded to 72 rows for a tokenizer of 64 ids, as large teachers' are."""
    return toys.save_model(tmp_path_factory.mktemp("teacher"), layers=4, seed=1, vocab_size=72)


@pytest.fixture(scope="session")
def toy_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers with the toy teacher's tokenizer."""
    return toys.save_model(tmp_path_factory.mktemp("student"), layers=2, seed=2)


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 documents of 20 to 99 words, a file each."""
    return toys.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def toy_recipe(toy_teacher: Path, toy_student: Path, toy_corpus: Path, tmp_path: Path) -> dict[str, Any]:
    """A whole recipe over the toys, as data to change before it is parsed."""
    return toys.recipe(toy_teacher, toy_student, toy_corpus, tmp_path / "work")


@pytest.fixture(scope="session")
def prepared_recipe(
    toy_teacher: Path, toy_student: Path, toy_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The same without a baseline, its sequences and cache there: copy its workdir, and change what is trained."""
    folder = tmp_path_factory.mktemp("prepared")
    made = toys.recipe(toy_teacher, toy_student, toy_corpus, folder / "work") | {"baseline": "off"}
    for stage in ("prepare", "cache"):
        done = dkd(stage, write_recipe(folder, made))
        assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def captured_recipe(toy_recipe: dict[str, Any], prepared_recipe: dict[str, Any]) -> dict[str, Any]:
    """The toys' recipe, without a baseline, with that in its own workdir: what is trained may be changed."""
    shutil.copytree(prepared_recipe["workdir"], toy_recipe["workdir"])
    return toy_recipe | {"baseline": "off"}


@pytest.fixture(scope="session")
def ray_cluster() -> Any:
    """One local Ray for all tests of a session: starting it takes seconds."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    # Workers import this repository's package and tests, whatever directory pytest was started in.
    root = str(Path(__file__).parent.parent)
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )  # fmt: skip
    yield ray
    ray.shutdown()
