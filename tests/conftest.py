"""Toy models, tokenizers and corpora, made once a session: small, real, and of a known answer where it matters."""

from __future__ import annotations

import os
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

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


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
    return {
        "name": "toy",
        "workdir": str(tmp_path / "work"),
        "corpus": {
            "source": str(toy_corpus), "sequence_length": 16, "shard_sequences": 16, "validation_fraction": 0.2,
            "development_fraction": 0.1, "block_bytes": 2000,
        },
        "teachers": [{"model": str(toy_teacher), "dtype": "float32"}],
        "targets": {"k": 8, "temperatures": [1.0, 2.0]},
        "capture": {"replicas": 1, "batch_tokens": 64, "head_chunk": 16},
        "student": {"model": str(toy_student)},
        "objective": {"temperature": 2.0, "alpha": 0.5},
        "trainer": {"processes": 1, "global_batch": 8, "micro_batch": 4, "steps": 6, "learning_rate": 1e-2},
        "evaluate": {"bootstrap": 200},
    }  # fmt: skip


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
