"""What comes from others is data: nothing of it is run, whatever it claims to be (SECURITY.md).

Caches that are made to do harm are `tests/cache/hostile.py`'s; here are models, tokenizers and pickles in their place.
"""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from distributed_kd import cache
from distributed_kd.cache.inspect import inspect
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.errors import RequestError
from distributed_kd.models.config import load_config
from distributed_kd.models.load import from_pretrained
from distributed_kd.models.tokenizer import load_tokenizer
from distributed_kd.store.filesystem import Store
from tests.commands import ROOT

# Modules that run what they read, and calls that do.
UNPICKLING = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
RUNNING = {"eval", "exec", "compile", "__import__"}
UNSAFE_LOADS = {"yaml.load", "yaml.full_load", "yaml.unsafe_load", "torch.load", "np.load", "numpy.load"}


def calls() -> list[tuple[str, ast.Call]]:
    """Every call in the package, with where it is."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for folder in ("distributed_kd", "jobs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def said(call: ast.Call, name: str) -> Any:
    """The value of a keyword, where it is written there as one."""
    return next((ast.literal_eval(one.value) for one in call.keywords if one.arg == name), None)


def test_nothing_unpickles_or_runs_what_it_reads() -> None:
    for path in sorted((ROOT / "distributed_kd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} != {"UnpicklingError"}:
                names.append(node.module or "")
            assert not {name.partition(".")[0] for name in names} & UNPICKLING, path
    for where, call in calls():
        name = ast.unparse(call.func)
        assert name not in UNSAFE_LOADS | RUNNING, f"{where}: {name}"
        assert said(call, "shell") is not True and name != "os.system", f"{where}: a shell reads what it is given"
        assert said(call, "allow_pickle") is not True, where
        assert said(call, "weights_only") is not False, where


def test_no_model_and_no_tokenizer_brings_code() -> None:
    """Unsaid, transformers asks at the terminal whether to run it."""
    opened = [
        (where, call)
        for where, call in calls()
        if isinstance(call.func, ast.Attribute)
        and call.func.attr == "from_pretrained"
        and ast.unparse(call.func.value).lower().startswith("auto")
    ]
    assert len(opened) >= 5
    assert [where for where, call in opened if said(call, "trust_remote_code") is not False] == []


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture
def bomb(tmp_path: Path) -> tuple[bytes, Path]:
    """A pickle, and the file that is there once something has unpickled it."""
    file = tmp_path / "went off"
    data = pickle.dumps(Bomb(file))
    pickle.loads(data)
    assert file.exists()
    file.unlink()
    return data, file


def test_code_beside_a_model_is_not_run_and_not_asked_about(
    toy_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what somebody may answer
    model = shutil.copytree(toy_teacher, tmp_path / "model")
    ran = tmp_path / "ran"
    (model / "own.py").write_text(
        f"open({str(ran)!r}, 'w')\n"
        "from transformers import PretrainedConfig, PreTrainedTokenizerFast\n"
        "class Config(PretrainedConfig): model_type = 'own'\n"
        "class Tokenizer(PreTrainedTokenizerFast): pass\n"
    )
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}})
    )
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    code = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer | code))
    with pytest.raises(RequestError, match="its configuration cannot be read"):
        load_config(model)
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="no tokenizer can be loaded"):
        load_tokenizer(model)
    assert not ran.exists()


def test_a_pickle_in_the_place_of_weights_is_refused(
    toy_teacher: Path, tmp_path: Path, bomb: tuple[bytes, Path]
) -> None:
    from transformers import AutoModelForCausalLM

    data, went_off = bomb
    model = shutil.copytree(toy_teacher, tmp_path / "model")
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(RequestError, match="cannot be loaded"):
        from_pretrained(AutoModelForCausalLM, model)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(RequestError, match="holds more than numbers, or is damaged; use weights in safetensors"):
        from_pretrained(AutoModelForCausalLM, model)
    assert not went_off.exists()


def test_a_pickle_in_the_place_of_any_file_of_an_artifact_is_refused(
    prepared_recipe: dict[str, Any], tmp_path: Path, bomb: tuple[bytes, Path]
) -> None:
    data, went_off = bomb
    work = shutil.copytree(prepared_recipe["workdir"], tmp_path / "work")
    files = sorted(path for path in work.rglob("*") if path.is_file() and path.name != "recipe.yaml")
    assert {path.suffix for path in files} >= {".arrow", ".json"}
    refused = []
    for path in files:
        good = path.read_bytes()
        path.write_bytes(data)
        try:
            inspect(f"{work}/cache")
            opened = cache.open(f"{work}/cache")
            _ = [opened[row] for row in range(len(opened))]
            sequences = Sequences.open(Store(str(work)))
            _ = [
                sequences.read(entry.shard)
                for split in ("train", "validation", "development")
                for entry in sequences.shards(split)
            ]
        except RequestError:
            refused.append(path.relative_to(work).as_posix())
        path.write_bytes(good)
        assert not went_off.exists(), path
    assert {"cache/manifest.json", "cache/index.arrow", "sequences/manifest.json"} <= set(refused)
    assert len([one for one in refused if "/shards/" in one]) == len(
        [one for one in files if one.parent.name == "shards"]
    )
