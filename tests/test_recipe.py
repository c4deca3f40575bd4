"""Recipes: bad ones are one line that names the key; overrides reach any key; nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from distributed_kd.errors import RequestError
from distributed_kd.recipe import Objective, dump, load, parse

MINIMAL: dict[str, Any] = {
    "name": "x",
    "workdir": "runs/x",
    "corpus": {"source": "texts"},
    "teachers": [{"model": "teacher"}],
    "student": {"model": "student"},
    "trainer": {"epochs": 1},
}
LORA = {"rank": 8, "alpha": 16}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def changed(key: str, value: Any) -> dict[str, Any]:
    data = yaml.safe_load(yaml.safe_dump(MINIMAL))
    node = data
    *parents, last = key.split(".")
    for name in parents:
        node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
    node[last] = value
    return data


IMAGES = {"source": "x", "task": "classification", "features_column": "image"}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "corpus.sequence_lenght",
            3,
            "unknown key corpus.sequence_lenght; the nearest known one is corpus.sequence_length",
        ),
        ("teachers.0.dtyp", "x", "unknown key teachers.0.dtyp; the nearest known one is teachers.0.dtype"),
        ("trainr", {}, "unknown key trainr; the nearest known one is trainer"),
        ("objective.alpha", 1.5, "objective.alpha: input should be less than or equal to 1 (given: 1.5)"),
        ("objective.temperature", 0, "objective.temperature: input should be greater than 0 (given: 0)"),
        ("objective.temperature", 2, "objective.temperature 2 is not in targets.temperatures [1.0]"),
        ("targets.temperatures", [-1], "targets.temperatures.0: input should be greater than 0 (given: -1)"),
        ("targets.k", "many", "targets.k: input should be a valid integer"),
        ("targets.k", 0, "targets.k: input should be greater than or equal to 1 (given: 0)"),
        ("trainer.steps", 3, "trainer: give either `steps` or `epochs`"),
        ("trainer.micro_batch", 5, "global_batch 32 is not a multiple of micro_batch 5"),
        ("corpus.validation_fraction", 2, "corpus.validation_fraction: input should be less than or equal to 1"),
        ("corpus.task", "frames", "corpus: task frames needs `features_column`"),
        ("corpus.features_column", "x", "`features_column` goes with the task of classification and frames, not with"),
        ("corpus", IMAGES | {"augment": ["noise"]}, "corpus: `augment` needs `image_shape`"),
        ("corpus", IMAGES | {"features_column": None, "views": 2}, "corpus: `views` goes with masked_lm and with the"),
        ("corpus", IMAGES | {"image_shape": [4, 4], "augment": ["noise"], "view_column": "v"}, "either `augment` or"),
        (
            "corpus",
            IMAGES | {"image_shape": [4, 4], "augment": ["noise"], "keep_original": True},
            "`keep_original` needs `views` of 2 at least",
        ),
        ("corpus.augment_strength", 0.5, "`augment_strength` goes with the task of classification of images, not with"),
        ("corpus", IMAGES | {"packing": "isolate"}, "isolate is for causal_lm and chat; with classification choose"),
        ("teachers", [], "without teachers objective.alpha must be 0, not 0.5"),
        ("teachers", [{"dtype": "auto"}], "teachers.0: a teacher needs `model`, or the `recipe` that makes it"),
        ("student", {"init": "random", "config": {"model_type": "llama"}}, "`config` is for model_type: feature_class"),
        ("targets.method", "sample", "targets: method sample needs `draws`"),
        ("targets.method", "top_p", "targets: method top_p needs `p`"),
        ("targets.p", 0.9, "targets: `p` goes with method top_p, not with top_k"),
        ("capture.codec", "dense-1", "capture.codec dense-1 goes with targets.method full, not top_k"),
        ("objective.divergence", "hinge", "objective.divergence: input should be 'forward_kl', 'reverse_kl', 'jsd'"),
        ("objective.beta", 1, "objective.beta: input should be less than 1 (given: 1)"),
        ("student.init", "teacher_layers", "student: init: teacher_layers needs `layers`"),
        ("student", {"model": "m", "architecture": "distilbert"}, "`architecture` goes with init: teacher_layers"),
        (
            "student",
            {"init": "teacher_layers", "layers": 3, "architecture": "distilbert"},
            "student.architecture distilbert goes with corpus.task masked_lm and classification, not with causal_lm",
        ),
        ("student.classes", 3, "student.classes goes with corpus.task classification of texts"),
        ("objective.cosine", 0.1, "objective.cosine 0.1 needs the teacher's hidden states; set targets.hidden"),
        ("targets.hidden.layr", 1, "unknown key targets.hidden.layr; the nearest known one is targets.hidden.layer"),
        ("student.lora", {"rank": 8}, "student.lora.alpha is missing"),
        ("student.lora", LORA | {"rnk": 8}, "unknown key student.lora.rnk; the nearest known one is student.lora.rank"),
        (
            "student.lora",
            LORA | {"target_modules": []},
            "student.lora.target_modules: list should have at least 1",
        ),
        ("student", {"model": "m", "freeze": ["embeddings"], "lora": LORA}, "`freeze` does not go with `lora`"),
        ("student", {"model": "m", "init": "random", "lora": LORA}, "init: random leaves no folder for adapters"),
    ],
)
def test_what_is_wrong_is_one_line(key: str, value: Any, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(changed(key, value))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "codec", "said"),
    [
        ({"method": "full"}, "compact-1", "compact-1 is for targets of few ids; choose dense-1"),
        ({"method": "sample", "draws": 9, "temperatures": [1, 2]}, "compact-1", "ids drawn at T = 1 for [1.0, 2.0]"),
        ({"method": "sample", "draws": 9, "draw_temperature": 2}, "compact-1", "ids drawn at T = 2 for [1.0]"),
        ({"method": "sample", "draws": 9}, "dense-1", "dense-1 goes with targets.method full, not sample"),
    ],
)
def test_a_codec_that_does_not_keep_the_targets_is_refused(targets: dict[str, Any], codec: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(MINIMAL | {"targets": targets, "capture": {"codec": codec}})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teachers": [{"model": "a"}, {"model": "b"}]}, "targets.hidden goes with one teacher, not with 2"),
        ({"corpus": IMAGES}, "targets.hidden goes with corpus.task causal_lm, chat and masked_lm, not with class"),
    ],
)
def test_hidden_states_that_cannot_be_had_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(MINIMAL | {"targets": {"hidden": {}}} | changes)
    assert said in str(caught.value)


@pytest.mark.parametrize("key", ["workdir", "corpus.source", "teachers"])
def test_a_password_in_a_url_is_refused_and_not_told(key: str) -> None:
    url = "s3://KEY:SECRET@bucket/folder"
    with pytest.raises(RequestError, match=f"{key}.*: a password or a signature in a URL") as caught:
        parse(changed(key, [{"model": url}] if key == "teachers" else url))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "divergence", sorted({*get_args(Objective.model_fields["divergence"].annotation)} - {"forward_kl"})
)
def test_a_divergence_that_drawn_targets_would_bias_is_refused_by_name(divergence: str) -> None:
    drawn = MINIMAL | {"targets": {"method": "sample", "draws": 9}}
    with pytest.raises(RequestError, match=rf"objective\.divergence {divergence} is biased for targets that are drawn"):
        parse(drawn | {"objective": {"divergence": divergence}})
    assert parse(drawn).objective.divergence == "forward_kl"


def test_what_a_cache_is_made_from_names_the_keys_of_its_method_alone() -> None:
    def named(**targets: Any) -> set[str]:
        return set(parse(MINIMAL | {"targets": targets}).targets.made_from())

    assert named(k=9) == {"method", "k", "temperatures"}
    assert named(method="top_p", p=0.9) == {"method", "k", "p", "temperatures"}
    assert named(method="sample", draws=9) == {"method", "draws", "draw_temperature", "seed", "temperatures"}
    assert named(method="full") == {"method", "temperatures"}


def test_a_recipe_that_makes_a_teacher_has_none_made_for_it(tmp_path: Path) -> None:
    """Not of itself either, which would have no end."""
    file = tmp_path / "itself.yaml"
    file.write_text(yaml.safe_dump(MINIMAL | {"teachers": [{"recipe": str(file)}]}))
    with pytest.raises(RequestError, match="makes a teacher, so its own teachers cannot have a `recipe`; name their"):
        load(file)


def test_a_missing_key_is_named() -> None:
    data = {key: value for key, value in MINIMAL.items() if key != "corpus"}
    with pytest.raises(RequestError, match="corpus is missing"):
        parse(data)


def test_overrides_reach_nested_keys_and_list_places(recipe_file: Path) -> None:
    recipe = load(recipe_file, ["trainer.learning_rate=2e-4", "teachers.0.dtype=float32", "objective.alpha=1"])
    assert recipe.trainer.learning_rate == 2e-4
    assert recipe.teachers[0].dtype == "float32"
    assert recipe.objective.alpha == 1.0


@pytest.mark.parametrize("override", ["trainer.epochs", "=3", "teachers.4.dtype=float32"])
def test_a_bad_override_is_refused(recipe_file: Path, override: str) -> None:
    with pytest.raises(RequestError, match="override"):
        load(recipe_file, [override])


@pytest.mark.parametrize("off", ["off", False])
def test_the_baseline_can_be_off(off: Any) -> None:
    assert parse(changed("baseline", off)).baseline is None


def test_the_resolved_recipe_parses_to_itself() -> None:
    recipe = parse(MINIMAL)
    assert parse(yaml.safe_load(dump(recipe))) == recipe


@pytest.mark.parametrize("text", ["a: [", "just words", "\xff"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RequestError, match=r"bad\.yaml"):
        load(path)


def test_every_recipe_that_comes_with_the_project_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder, by path and by name; one of that name which is there is another."""
    monkeypatch.chdir(tmp_path)
    recipes = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert load(path) == load(f"recipes/{path.name}")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/demo.yaml").write_text(recipes[0].read_text())
    assert load("recipes/demo.yaml") == load(recipes[0])
    with pytest.raises(RequestError, match=r"recipe recipes/dema\.yaml cannot be read: No such file"):
        load("recipes/dema.yaml")


@pytest.mark.parametrize("module", ["distributed_kd.recipe", "distributed_kd.cli"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print(sorted({'torch', 'ray', 'transformers', 'deepspeed', 'pyarrow', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
