"""Whatever the pages tell a reader to type is there: each command, option, file, recipe key and name in Python.

Commands are read by the programs that they call (`tests/documented.py`). Those that toys can run are run: here, and by
the tests that the table names.
"""

from __future__ import annotations

import ast
import importlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.exceptions import TyperException

from distributed_kd.errors import RequestError
from distributed_kd.recipe import parse
from tests.commands import ROOT, dkd, write_recipe
from tests.documented import ELSEWHERE, RESOLVERS, check_setting, commands, own_recipe, resolve, settings
from tests.pages import PAGES, Code, code
from tests.teacher.served import log_probabilities, training_sequences, vllm_answer, write_json_lines

BLOCKS = [block for page in PAGES for block in code(page)[0]]
INLINE = [one for page in PAGES for one in code(page)[1]]
CALLS = [one for one in INLINE if one.text.split(" ")[0] in {*RESOLVERS, *ELSEWHERE} and " " in one.text]
HERE = "tests/test_docs_commands.py"
CLASSICS = "tests/test_classics.py"
MAKE = "tests/test_make.py"
USE_A_PART = "tests/test_use_a_part.py"
# By what each block is run: as it stands, or on toys and over fewer steps.
RUN_BY = {
    ("README.md", "Distributed KD"): [".ci/run"],
    ("README.md", "How it works"): [f"{HERE}::test_the_readmes_commands_in_their_order"],
    ("README.md", "On a cluster"): ["tests/launch/test_submit.py::test_stages_run_as_jobs_and_a_refusal_comes_back"],
    ("README.md", "Using a cache from other code"): [f"{HERE}::test_the_readmes_python"],
    ("CONTRIBUTING.md", "Set-up and tests"): [
        ".ci/run", f"{MAKE}::test_what_is_published",
        f"{MAKE}::test_the_bill_of_materials_names_every_constrained_package",
        f"{MAKE}::test_a_few_seconds_of_fuzzing", f"{MAKE}::test_a_few_mutants",
    ],
    ("docs/choosing.md", "Before the capture"): [
        "tests/teacher/test_plan_demo.py::test_bytes_are_those_of_the_demos_cache",
        "tests/teacher/test_audit.py::test_the_command_prints_a_table_or_json",
    ],
    ("docs/classics.md", "Ten acoustic models into one"): [
        f"{CLASSICS}::test_an_ensembles_student_beats_labels_on_real_speech",
        f"{CLASSICS}::test_temperatures_are_compared_on_development_transcripts",
    ],
    ("docs/classics.md", "Soft targets where labels cannot be trusted"): [
        f"{CLASSICS}::test_soft_targets_of_heavy_views_beat_labels_of_which_many_are_wrong",
        f"{CLASSICS}::test_label_noise_over_seeds",
    ],
    ("docs/classics.md", "DistilBERT"): [
        f"{CLASSICS}::test_distilberts_chain_is_nearer_to_its_teacher_than_labels_alone",
        f"{CLASSICS}::test_what_is_claimed_of_half_a_bert",
    ],
    ("docs/classics.md", "Few labels"): [f"{CLASSICS}::test_what_is_claimed_of_half_a_bert"],
    ("docs/classics.md", "General distillation and fewer layers"): [f"{CLASSICS}::test_what_is_claimed_of_half_a_bert"],
    ("docs/deploying.md", "Slurm"): [
        "tests/infra/test_slurm.py::test_a_capture_is_stopped_requeued_and_finished",
        "tests/infra/test_slurm.py::test_a_training_is_stopped_requeued_and_finished",
    ],
    ("docs/deploying.md", "A Ray cluster"): [
        "tests/launch/test_submit.py::test_stages_run_as_jobs_and_a_refusal_comes_back",
    ],
    ("docs/deploying.md", "Images"): [],
    ("docs/use-a-part.md", "A cache made elsewhere"): [
        f"{USE_A_PART}::test_requests_for_a_server", "tests/teacher/test_imported.py::test_the_command_and_a_training",
    ],
} | {
    ("docs/use-a-part.md", heading): [f"{USE_A_PART}::{test}"]
    for heading, test in (
        ("The objective alone", "test_the_objective_alone"),
        ("The cache in a PyTorch loop", "test_a_pytorch_loop"),
        ("DDP", "test_ddp_and_fsdp2_give_the_weights_of_one_process"),
        ("FSDP2", "test_ddp_and_fsdp2_give_the_weights_of_one_process"),
        ("Hugging Face Trainer", "test_a_trainer_of_transformers"),
        ("A datasets dataset", "test_a_dataset_of_datasets"),
        ("TRL's SFTTrainer", "test_the_sft_trainer_of_trl"),
        ("An export in DuckDB and Polars", "test_an_export_in_duckdb_and_polars"),
        ("DuckDB", "test_an_export_in_duckdb_and_polars"),
        ("Polars", "test_an_export_in_duckdb_and_polars"),
        ("The student in transformers.pipeline", "test_the_student_in_a_pipeline"),
        ("The student in lm-eval", "test_the_student_in_lm_eval"),
        ("The student on the hub", "test_the_card_says_where_the_student_comes_from"),
    )
}  # fmt: skip
# What no test runs, by its beginning, and why; the page says so beside it.
BY_HAND = {
    "make test-all": "is the tests",
    ".venv/bin/pytest": "is the tests",
    "docker build": "no engine is at hand; its steps are run by tests/infra/test_docker.py",
}
# What a test has in the place of a recipe that asks for a cluster.
INSTEAD = {"cluster.yaml": "toy_recipe"}


@contextmanager
def _named(written: Code) -> Iterator[None]:
    """What fails inside says where on the pages it stands."""
    try:
        yield
    except (Exception, SystemExit) as error:
        error.add_note(f"{written}: {written.text.strip()}")
        raise


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    """A new kind of block needs a test here first; output and diagrams are `text`."""
    assert {block.language for block in BLOCKS} <= {"", "bash", "python", "yaml", "text"}, [
        str(block) for block in BLOCKS if block.language == "indented"
    ]
    assert len(CALLS) > 50 and len([block for block in BLOCKS if block.language in ("", "bash")]) > 10


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in ("", "bash")], ids=str)
def test_a_block_of_commands_says_what_there_is(block: Code) -> None:
    found = commands(block)
    assert found
    for words in found:
        with _named(block):
            resolve(words)


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_a_text_say_what_there_is(page: str) -> None:
    for one in CALLS:
        if one.page == page:
            for words in commands(one):
                with _named(one):
                    resolve(words)


@pytest.mark.parametrize(
    "line",
    [
        "dkd rnu mine.yaml",
        "dkd run mine.yaml --jsno",
        "dkd run mine.yaml trainer.learning_rat=5e-5",
        "dkd run recipes/hinton-ensembles.yaml",
        "dkd submit caches recipes/cluster.yaml",
        "dkd merge runs/a/cache runs/b/cache",
        "python benchmarks/digits.py --seed-count 3",
        "python benchmarks/digit.py",
        "python docs/recipe_keys.py --all",
        "make dcos",
        "pip install 'distributed-kd[s4]'",
        'pytest -m "not slwo"',
        "pytest tests/hosts -k ruonds",
        "torchrun --nodes-rank 2 -m distributed_kd.cli train RECIPE",
        "deepspeed --module distributed_kd.clli train RECIPE",
        "srun -N 2 dkd trian RECIPE trainer.workers=2",
        "sbatch infra/slurm/captures.sbatch RECIPE WORKDIR",
        "docker build --target cdua .",
        "kubectl create secret generic ddk",
        "dkdd run mine.yaml",
    ],
)
def test_a_mistake_in_a_command_is_seen(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    [words] = commands(Code("page", 1, "", "", line))
    with pytest.raises((ValueError, RequestError, OSError, SystemExit, TyperException)):
        resolve(words)


def test_the_tests_that_the_tables_name_are_there() -> None:
    for named in ELSEWHERE.values():
        file, _, test = named.partition("::")
        assert f"\ndef {test}(" in (ROOT / file).read_text(), named


def test_recipes_on_the_pages_are_recipes() -> None:
    whole = yaml.safe_load(own_recipe())
    parse(whole)
    shown = [block for block in BLOCKS if block.language == "yaml" and block.page != "docs/use-a-part.md"]
    assert len(shown) >= 3
    for block in shown:
        parse(whole | yaml.safe_load(block.text), str(block))


def test_recipe_keys_within_a_text_are_known() -> None:
    """And a value that stands beside one is a value of its."""
    found = [(one, *setting) for one in INLINE for setting in settings(one.text)]
    assert len(found) > 60
    for one, key, value in found:
        with _named(one):
            check_setting(key, value)


@pytest.mark.parametrize("text", ["trainer.learning_rat", "student.lora.rnk=8", "corpus.task: chta", "targets.k=many"])
def test_a_mistake_in_a_recipe_key_is_seen(text: str) -> None:
    [(key, value)] = settings(text)
    with pytest.raises(ValueError, match=r"no key|validation error"):
        check_setting(key, value)


def test_files_within_a_text_are_there() -> None:
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("runs", "site"))
    named = [one for one in INLINE if re.match(rf"(?:{folders})/[\w./*-]+(?:::\w+)?$", one.text)]
    assert len(named) > 30
    for one in named:
        file, _, test = one.text.partition("::")
        assert (ROOT / file).exists(), f"{one} names {file}"
        assert f"\ndef {test}(" in (ROOT / file).read_text() if test else True, f"{one} names {test}"


def test_each_block_is_run_by_the_test_that_the_table_names() -> None:
    """Which has the block's heading, or of each command the recipe or script, or without one the subcommand."""
    runnable = [block for block in BLOCKS if block.language in ("", "bash", "python")]
    assert {(block.page, block.heading) for block in runnable} == RUN_BY.keys()
    for block in runnable:
        said = set().union(*map(_said, RUN_BY[block.page, block.heading]))
        for words in [] if block.language == "python" else commands(block):
            by_hand = any(" ".join(words).startswith(beginning) for beginning in BY_HAND)
            assert by_hand or said & {block.heading, _subject(words)}, f"{block}: no test runs {' '.join(words)}"
        if block.language == "python":
            assert block.heading in said or {block.page, block.language} <= said, f"{block}: no test runs it"


def test_a_command_that_no_test_runs_is_seen() -> None:
    [lost] = commands(Code("page", 1, "", "", "dkd run recipes/digits-teacher.yaml"))
    assert _subject(lost) not in _said(f"{CLASSICS}::test_an_ensembles_student_beats_labels_on_real_speech")
    assert _subject(commands(Code("page", 1, "", "", "make fuzz"))[0]) not in _said(".ci/run")


def _subject(words: list[str]) -> str:
    files = [word for word in words[1:] if re.match(r"(?:benchmarks|infra|recipes)/.+\.\w+$", word)]
    name = files[0].rpartition("/")[2] if files else words[1]
    return INSTEAD.get(name, name)


def _said(named: str) -> set[str]:
    """Names, and the last parts of strings, in a test and in all of its file that it uses; the words of a script."""
    file, _, test = named.partition("::")
    text = (ROOT / file).read_text()
    if not test:
        return set(text.split())
    tree = ast.parse(text)
    own: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own[node.name] = node
        elif isinstance(node, ast.Assign):
            own |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    said: set[str] = set()
    to_read = [test]
    while to_read:
        for node in ast.walk(own.pop(to_read.pop(), ast.Pass())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said |= {node.value, *(word.rpartition("/")[2] for word in node.value.split())}
            elif isinstance(node, ast.Name | ast.arg):
                name = node.id if isinstance(node, ast.Name) else node.arg
                said.add(name)
                to_read.append(name)
    assert test in text and said, f"there is no {named}"
    return said


def test_what_python_on_the_pages_imports_of_ours_is_there() -> None:
    for block in (one for one in BLOCKS if one.language == "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distributed_kd"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{block}: {node.module} has no {alias.name}"


@pytest.fixture
def place(prepared_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a cache where the README has it, and its recipe made small; the test is in it."""
    shutil.copytree(prepared_recipe["workdir"], tmp_path / "runs/mine")
    write_recipe(tmp_path, prepared_recipe | {"workdir": "runs/mine"}).rename(tmp_path / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readmes_python(place: Path) -> None:
    [block] = [one for one in BLOCKS if (one.page, one.language) == ("README.md", "python")]
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), names)
    assert names["log_p"].shape == (int(names["row"].sequence.loss_mask.sum()), 8)
    assert names["log_p_tail"].shape == names["log_p"].shape[:1]


@pytest.mark.slow
@pytest.mark.timeout(1500)  # two minutes of starts
def test_the_readmes_commands_in_their_order(place: Path, toy_teacher: Path) -> None:
    """As they stand, all of the list. Two caches to merge and what vLLM has served are laid where it has them."""
    [block] = [one for one in BLOCKS if (one.page, one.heading, one.language) == ("README.md", "How it works", "")]
    for name in ("a", "b"):
        shutil.copytree("runs/mine/cache", f"runs/{name}/cache")
    for program, *arguments in commands(block):
        assert program == "dkd"
        if arguments[0] == "import":  # into a workdir that has no cache yet, with the targets that lists can give
            served = [
                vllm_answer(one, log_probabilities(toy_teacher, one), 8)
                for one in training_sequences(place / "runs/mine")
            ]
            write_json_lines(place / arguments[3], served)
            shutil.copytree("runs/mine/sequences", "runs/served/sequences")
            arguments += ["workdir=runs/served", "targets.temperatures=[1.0]", "objective.temperature=1.0"]
        done = dkd(*arguments, cwd=place)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
    assert {path.name for path in place.glob("runs/*")} == {"mine", "lower", "a", "b", "both", "served"}
    assert (place / "mine.parquet").exists()
