"""dkd import: lists that other programs made become the cache that a capture of the same teacher is, or one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_kd import cache
from distributed_kd.cache.verify import verify
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import RequestError
from distributed_kd.recipe import parse
from distributed_kd.store.filesystem import Store
from distributed_kd.student.artifact import StudentManifest
from distributed_kd.student.train import train
from distributed_kd.teacher.audit import audit
from distributed_kd.teacher.capture import capture
from distributed_kd.teacher.imported import import_lists
from distributed_kd.teacher.repair import repair
from tests.commands import dkd, write_recipe
from tests.ranks import Ranks
from tests.teacher.served import axolotl_row, log_probabilities, training_sequences, vllm_answer, write_json_lines

K = 8


@pytest.fixture(scope="module")
def served(prepared_recipe: dict[str, Any]) -> list[tuple[Sequence, Any]]:
    """The training sequences with the teacher's log-probabilities, by transformers alone."""
    teacher = Path(prepared_recipe["teachers"][0]["model"])
    return [(one, log_probabilities(teacher, one)) for one in training_sequences(Path(prepared_recipe["workdir"]))]


@pytest.fixture(scope="module")
def answers(served: list[tuple[Sequence, Any]]) -> list[dict[str, Any]]:
    return [vllm_answer(sequence, log_p, K) for sequence, log_p in served]


@pytest.fixture
def recipe(prepared_recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A workdir with the sequences alone, for targets that lists can give."""
    shutil.copytree(Path(prepared_recipe["workdir"]) / "sequences", tmp_path / "work/sequences")
    targets, objective = {"k": K, "temperatures": [1.0]}, {"temperature": 1.0, "alpha": 0.5}
    return prepared_recipe | {"workdir": str(tmp_path / "work"), "targets": targets, "objective": objective}


def is_as_captured(recipe: dict[str, Any], captured: dict[str, Any], atol: float) -> None:
    """Whether the caches of both workdirs say the same of each position at T = 1."""
    ours, theirs = (cache.open(f"{one['workdir']}/cache") for one in (recipe, captured))
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(own.sequence.input_ids, other.sequence.input_ids)
        np.testing.assert_array_equal(own.targets.ids, other.targets.ids)
        for found, expected in zip(
            own.targets.log_probabilities(1.0), other.targets.log_probabilities(1.0), strict=True
        ):
            np.testing.assert_allclose(found, expected, atol=atol)


def test_answers_of_vllm_are_the_cache_of_a_capture(
    recipe: dict[str, Any], prepared_recipe: dict[str, Any], answers: list[dict[str, Any]], tmp_path: Path
) -> None:
    source = write_json_lines(tmp_path / "answers.jsonl", answers)
    made = import_lists(parse(recipe), str(source), "vllm")
    assert (made.method, made.k, made.vocabulary_size, made.temperatures) == ("top_k", K, 72, [1.0])
    assert verify(f"{recipe['workdir']}/cache").all_good
    is_as_captured(recipe, prepared_recipe, atol=2e-3)  # both round logits to half precision
    assert import_lists(parse(recipe), str(source), "vllm") == made  # done already
    for call in (capture, repair):
        with pytest.raises(RequestError, match="was imported from vllm lists;"):
            call(parse(recipe))
    with pytest.raises(RequestError, match="was imported, from a teacher whose files it does not know"):
        audit(f"{recipe['workdir']}/cache")
    write_json_lines(source, [answers[0] | {"id": "other"}, *answers[1:]])
    with pytest.raises(RequestError, match=r"a cache made from something else \(imported\.sha256"):
        import_lists(parse(recipe), str(source), "vllm")


def test_a_batchs_output_and_the_compact_codec(
    recipe: dict[str, Any], prepared_recipe: dict[str, Any], answers: list[dict[str, Any]], tmp_path: Path
) -> None:
    recipe["capture"] = recipe["capture"] | {"codec": "compact-1", "table_positions": 200}
    lines = [{"custom_id": "1", "response": {"status_code": 200, "body": answer}, "error": None} for answer in answers]
    import_lists(parse(recipe), str(write_json_lines(tmp_path / "batch.jsonl", lines)), "vllm")
    assert verify(f"{recipe['workdir']}/cache").all_good
    ours, theirs = (cache.open(f"{one['workdir']}/cache") for one in (recipe, prepared_recipe))
    for own, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.sort(own.targets.ids), np.sort(other.targets.ids))  # equal levels are a set
        np.testing.assert_allclose(own.targets.tail_odds[:, 0], other.targets.tail_odds[:, 0], atol=0.05)


@pytest.mark.parametrize("of_next", [True, False])
def test_a_prepared_dataset_of_axolotl_either_way(
    recipe: dict[str, Any], prepared_recipe: dict[str, Any], served: list[tuple[Sequence, Any]], tmp_path: Path,
    of_next: bool,
) -> None:  # fmt: skip
    """Rows of their own token, as its chat template prepares them, and of the next one, as its vLLM collator does."""
    from datasets import Dataset

    rows = [axolotl_row(sequence, log_p, K, of_next, normalised=False) for sequence, log_p in served]
    Dataset.from_list(rows).save_to_disk(tmp_path / "prepared", num_shards=2)
    import_lists(parse(recipe), str(tmp_path / "prepared"), "axolotl")
    assert verify(f"{recipe['workdir']}/cache").all_good
    is_as_captured(recipe, prepared_recipe, atol=2e-3)


def test_lists_that_were_normalised_are_taken_only_if_asked(
    recipe: dict[str, Any], served: list[tuple[Sequence, Any]], tmp_path: Path
) -> None:
    from datasets import Dataset

    rows = [axolotl_row(sequence, log_p, K, of_next=True, normalised=True) for sequence, log_p in served]
    Dataset.from_list(rows).save_to_disk(tmp_path / "prepared")
    with pytest.raises(RequestError, match=r"every list sums to 1, so it was normalised .* say --normalised"):
        import_lists(parse(recipe), str(tmp_path / "prepared"), "axolotl")
    assert not (tmp_path / "work/cache").exists()
    made = import_lists(parse(recipe), str(tmp_path / "prepared"), "axolotl", normalised=True)
    assert made.mean_kept_mass == pytest.approx(1.0, abs=1e-6)


def entry(answer: dict[str, Any], position: int) -> dict[str, Any]:
    """The list of what follows a position, to be changed."""
    found: dict[str, Any] = answer["choices"][0]["prompt_logprobs"][position + 1]
    return found


def heavier(answer: dict[str, Any]) -> None:
    for value in entry(answer, 3).values():
        value["logprob"] /= 2.0  # as at another temperature


def without_own(answer: dict[str, Any]) -> None:
    own = entry(answer, 3)
    del own[next(iter(own))]


def with_id(answer: dict[str, Any], name: str, value: Any = -1.0) -> None:
    entry(answer, 3)[name] = {"logprob": value}


def fewer(answer: dict[str, Any]) -> None:
    own = entry(answer, 3)
    for name in list(own)[1:4]:
        del own[name]


BAD: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (
        lambda answer: answer["choices"][0]["prompt_logprobs"].pop(),
        r"it has 15 prompt_logprobs for 16 ids; give one row",
    ),
    (
        lambda answer: answer["choices"][0].update(prompt_token_ids=[1, 2]),
        "its prompt_token_ids are not the sequence's; give",
    ),
    (lambda answer: answer["choices"].clear(), "it is no answer with prompt_logprobs; ask for them: prompt_logprobs=K"),
    (without_own, "position 3: the sequence's own next id [0-9]+ is not in its list, which vLLM always puts there"),
    (heavier, "position 3 has a mass of [0-9.]+, above 1; give natural logarithms at T = 1"),
    (lambda answer: with_id(answer, "9", float("nan")), "position 3 has a logprob that is no finite number; mend it"),
    (lambda answer: with_id(answer, "72"), "position 3 has id 72, outside the teacher's vocabulary of 72; serve the"),
    (lambda answer: with_id(answer, "-1"), "position 3 has id -1, outside the teacher's vocabulary of 72; serve the"),
    (lambda answer: with_id(answer, "x"), "position 3: an entry is not ID: {logprob: NUMBER}"),
    (fewer, "position 3 has [56] ids; ask for 8, or set targets.k=[56]"),
    (lambda answer: answer["choices"][0]["prompt_logprobs"].__setitem__(4, None), "position 3 carries loss and has no"),
]


@pytest.mark.parametrize(("change", "line"), BAD)
def test_a_bad_row_is_named(
    recipe: dict[str, Any], answers: list[dict[str, Any]], tmp_path: Path, change: Callable[[dict[str, Any]], Any],
    line: str,
) -> None:  # fmt: skip
    bad = json.loads(json.dumps(answers[2]))
    change(bad)
    source = write_json_lines(tmp_path / "answers.jsonl", [*answers[:2], bad, *answers[3:]])
    with pytest.raises(RequestError, match=rf"answers\.jsonl row 3 \(sequence 2\): {line}"):
        import_lists(parse(recipe), str(source), "vllm")
    assert not (tmp_path / "work/cache").exists()


def test_a_source_or_a_recipe_that_does_not_fit(
    recipe: dict[str, Any], answers: list[dict[str, Any]], served: list[tuple[Sequence, Any]], tmp_path: Path
) -> None:
    source = str(write_json_lines(tmp_path / "answers.jsonl", answers))
    less = str(write_json_lines(tmp_path / "less.jsonl", answers[:-1]))
    more = str(write_json_lines(tmp_path / "more.jsonl", [*answers, *answers[:2]]))
    count = len(answers)
    hotter = recipe | {"targets": {"k": K, "temperatures": [1.0, 2.0]}}
    for wanted, where, kind, line in (
        (
            recipe,
            less,
            "vllm",
            rf"has {count - 1} rows for the {count} training sequences of \S+; give one row for each",
        ),
        (recipe, more, "vllm", rf"has {count + 2} rows for the {count} training sequences"),
        (recipe, str(tmp_path / "none"), "vllm", "there is no such file; name one of JSON lines"),
        (recipe, source, "axolotl", r"no dataset that was saved \(state\.json\) is there"),
        (recipe, source, "sglang", "--format sglang is not one of vllm, axolotl"),
        (
            hotter,
            source,
            "vllm",
            r"targets\.temperatures \[1\.0, 2\.0\]: logprobs of a few ids give T = 1 alone, since",
        ),
        (
            recipe | {"targets": recipe["targets"] | {"hidden": {}}},
            source,
            "vllm",
            r"targets\.hidden: lists of logprobs have no hidden states; leave it out",
        ),
        (
            recipe | {"teachers": 2 * recipe["teachers"]},
            source,
            "vllm",
            "the recipe names 2 teachers; name the one that",
        ),
        (recipe | {"targets": {"method": "full"}}, source, "vllm", "targets.method full: lists of the most probable"),
    ):
        with pytest.raises(RequestError, match=line):
            import_lists(parse(wanted), where, kind)
    from datasets import Dataset

    row = axolotl_row(*served[0], K, of_next=True, normalised=False)
    for change, line in (
        ({"input_ids": row["input_ids"][::-1]}, "its input_ids are not the sequence's"),
        ({"labels": [-100] * 16}, "its target_mask does not tell whether"),
        ({"target_mask": row["target_mask"][:-1]}, "its 16, 16, 15 target rows are not one for each id"),
    ):
        Dataset.from_list([row | change]).save_to_disk(tmp_path / "bad")
        with pytest.raises(RequestError, match=rf"bad row 1 \(sequence 0\): {line}"):
            import_lists(parse(recipe), str(tmp_path / "bad"), "axolotl")
        shutil.rmtree(tmp_path / "bad")
    assert not (tmp_path / "work/cache").exists()


@pytest.mark.slow
def test_the_command_and_a_training(recipe: dict[str, Any], answers: list[dict[str, Any]], tmp_path: Path) -> None:
    source, path = write_json_lines(tmp_path / "answers.jsonl", answers), write_recipe(tmp_path, recipe)
    done = dkd("import", path, "--from", source, "--format", "vllm", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["k"], facts["missing_shards"], facts["sequences"]) == (K, [], len(answers))
    with pytest.raises(RequestError, match=r"a cache made from something else \(targets\.k: 8, not 4\)"):
        train(parse(recipe | {"targets": {"k": 4}}))
    run = Ranks(recipe | {"trainer": recipe["trainer"] | {"steps": 2}}, tmp_path / "ranks", 1)
    run.wait()
    trained = StudentManifest.read(Store(f"{recipe['workdir']}/student"))
    assert trained is not None and trained.steps == 2
