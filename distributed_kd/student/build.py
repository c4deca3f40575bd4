"""Where a student's weights come from, and which of them are trained.

`teacher_layers` reads only the kept layers' tensors out of the teacher's safetensors and writes them as a model of
its own, `WORKDIR/student/init`, while the teacher is at hand: training then needs nothing of the teacher. With
`architecture: distilbert` that model is a DistilBERT. An encoder that lacks a head gets one there, of both arms.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from distributed_kd.errors import RequestError
from distributed_kd.models import parts
from distributed_kd.models.adapters import add_adapters
from distributed_kd.models.config import config_of_student, folder_of_config, lacks_head, load_config
from distributed_kd.models.distilbert import distilbert_of
from distributed_kd.models.headless import open_for_task
from distributed_kd.models.load import auto_class, load_model, quantised_by
from distributed_kd.models.locate import identity, locate, resolve_package
from distributed_kd.models.tokenizer import copy_tokenizer
from distributed_kd.recipe import Recipe, Student
from distributed_kd.store.digest import canonical_json, differences
from distributed_kd.store.filesystem import Store
from distributed_kd.store.folder import as_local_folder, put_folder

INITIAL = "student/init"
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")


def write_initial_weights(recipe: Recipe) -> None:
    """Makes `WORKDIR/student/init` for a student of teacher layers, unless it is there. Needs the teacher's files.

    Raises `RequestError` when another student's initial weights are there.
    """
    teacher, student = recipe.teachers[0], recipe.student
    made_from: dict[str, Any] = {"teacher": teacher.model, "revision": teacher.revision, "layers": student.layers}
    if student.architecture is not None:
        made_from |= {"architecture": student.architecture, "seed": recipe.trainer.seed}

    def make(target: Path) -> None:
        folder = locate(teacher.model, teacher.revision)
        identity(folder)  # says in one line when there are no weights
        if student.architecture == "distilbert":
            _write_distilbert(folder, recipe, target)
        else:
            keep_layers(folder, student.layers, target)

    _make_once(recipe, made_from, make)


def student_folder(recipe: Recipe) -> Path:
    """The local folder the student starts from, for an encoder without a head made with a fresh one.

    Raises `RequestError` when it cannot be had.
    """
    if recipe.student.init == "teacher_layers":
        write_initial_weights(recipe)
        return as_local_folder(Store(recipe.workdir), INITIAL)
    if recipe.student.config is not None:
        return folder_of_config(recipe.student.config)
    assert recipe.student.model is not None  # the recipe's own rule
    folder = locate(recipe.student.model, weights=recipe.student.init == "weights")
    task, classes = recipe.corpus.task, recipe.student.classes
    config_of_student(load_config(folder), recipe.student, task)  # which refuses `classes` that do not fit it
    if recipe.student.init == "random" or not lacks_head(load_config(folder), task):
        return folder
    if recipe.student.lora is not None:
        raise RequestError(
            f"student.model {recipe.student.model} has no head for corpus.task: {task}, and adapters would "
            "leave a fresh one as it is; leave out `lora`, or train the whole model first"
        )

    def make(target: Path) -> None:
        open_for_task(folder, task, recipe.trainer.seed, classes).save_pretrained(target)
        copy_tokenizer(folder, target)

    _make_once(recipe, {"model": recipe.student.model, "classes": classes, "seed": recipe.trainer.seed}, make)
    return as_local_folder(Store(recipe.workdir), INITIAL)


def _make_once(recipe: Recipe, made_from: dict[str, Any], make: Callable[[Path], None]) -> None:
    workdir = Store(recipe.workdir)
    name = f"{INITIAL}/made_from.json"
    if workdir.exists(name):
        found = json.loads(workdir.read(name))
        if found != made_from:
            raise RequestError(
                f"{workdir.uri}/{INITIAL} was made for another student ({'; '.join(differences(found, made_from))}); "
                f"choose another `workdir`, or delete {workdir.uri}/student to make it again"
            )
        return
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary))
        put_folder(Path(temporary), workdir, INITIAL)
    workdir.put(name, canonical_json(made_from))


def load_student(recipe: Recipe, folder: Path, is_first: bool = True) -> Any:
    """The student on the CPU in float32, in training mode, body and head checked and trainable parameters marked.

    is_first: whether this is the first rank, whose parameters all get as the engine starts; others have no values in
    theirs until then, which take no memory, and read no file of weights, unless it holds buffers or quantised weights.
    The same seed gives the same fresh weights.
    """
    empty = None if is_first else _without_values(folder)
    model = mark_trained(_with_values(recipe, folder) if empty is None else empty, recipe)
    if recipe.trainer.activation_checkpointing:
        with warnings.catch_warnings():  # its name from v6 on is not there in all of v5
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})  # which needs no gradient of a layer's input
    if empty is None:
        parts.check(model.eval())
    if recipe.trainer.compile:
        compile_layers(model)
    return model.train()


def _with_values(recipe: Recipe, folder: Path) -> Any:
    if recipe.student.init != "random":
        return load_model(folder, torch.float32, torch.device("cpu"))
    torch.manual_seed(recipe.trainer.seed)
    return auto_class(folder).from_config(load_config(folder)).float()


def _without_values(folder: Path) -> Any:
    """The model in float32 with its buffers; memory for its parameters is asked for and not touched.

    None where files must be read: quantised parameters are of another shape, and the engine sends no buffers.
    """
    from transformers.initialization import no_init_weights

    if quantised_by(folder) is not None:
        return None
    with no_init_weights():
        model = auto_class(folder).from_config(load_config(folder), dtype=torch.float32)
    model.tie_weights()
    has_buffers = model.state_dict().keys() - dict(model.named_parameters(remove_duplicate=False)).keys()
    return None if has_buffers else model


def compile_layers(model: Any) -> None:
    """In place, so that no parameter gets another name; layers of one kind share what is compiled.

    Raises `RequestError` where there are none.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise RequestError(
            f"trainer.compile: {type(parts.within(model)).__name__} has no layers to compile; leave it out"
        )
    for layer in layers:
        layer.compile(dynamic=True)  # batches are as long as their longest sequence


def empty_student(folder: Path) -> Any:
    """The student's modules and parameter names without memory for them."""
    with torch.device("meta"):
        return auto_class(folder).from_config(load_config(folder))


def mark_trained(model: Any, recipe: Recipe) -> Any:
    """The model with what `student.freeze` says, or in peft's wrapper with the adapters of `student.lora`.

    Raises `RequestError` where either does not fit the model. The same seed gives the same adapters.
    """
    if recipe.student.lora is None:
        freeze(model, recipe.student)
        return model
    model = add_adapters(model, recipe.student.lora, recipe.trainer.seed)
    parts.head_of(model)  # which refuses one with an adapter, here before any weights are read
    return model


def base_name(recipe: Recipe, folder: Path) -> str:
    """What an adapter's configuration calls the model below it: a hub id as it is, else a folder's absolute path.

    Of a student of teacher layers in a bucket it is a URL, which this package alone opens.
    """
    if recipe.student.init == "teacher_layers":
        workdir = Store(recipe.workdir)
        return str(folder.resolve()) if workdir.is_local else f"{workdir.uri}/{INITIAL}"
    assert recipe.student.model is not None  # the recipe's own rule
    is_local = resolve_package(recipe.student.model).exists()
    return str(folder.resolve()) if is_local else recipe.student.model


def freeze(model: Any, student: Student) -> None:
    """Turns gradients off for the parameters that `student.freeze` names. Raises `RequestError` for a name of none."""
    embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    for entry in student.freeze:
        frozen = [
            parameter
            for name, parameter in model.named_parameters()
            if (id(parameter) in embeddings if entry == "embeddings" else _matches(name, entry))
        ]
        if not frozen:
            raise RequestError(
                f"student.freeze {entry!r} names no parameter; use embeddings, layers.I, layers.I-J "
                f"or the beginning of a parameter's name"
            )
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RequestError("student.freeze leaves nothing to train")


def _matches(name: str, entry: str) -> bool:
    layers = re.fullmatch(r"layers\.(\d+)(?:-(\d+))?", entry)
    if not layers:
        return name.startswith(entry)
    place = _LAYER.search(name)
    first, last = int(layers[1]), int(layers[2] or layers[1])
    return place is not None and first <= int(place[1]) <= last


def which_layers(layers: int | list[int], of: int) -> list[int]:
    """A list as it is, a count evenly spread over the teacher's layers with its first and last."""
    chosen = layers if isinstance(layers, list) else [int(place) for place in np.linspace(0, of - 1, layers).round()]
    if not chosen or max(chosen) >= of or sorted(set(chosen)) != chosen:
        raise RequestError(
            f"student.layers {layers}: the teacher has {of} layers, 0 to {of - 1}, each used once in order"
        )
    return chosen


def _write_distilbert(teacher: Path, recipe: Recipe, target: Path) -> None:
    assert recipe.student.layers is not None  # the recipe's own rule
    chosen = which_layers(recipe.student.layers, load_config(teacher).num_hidden_layers)
    distilbert_of(teacher, chosen, recipe.corpus.task, recipe.trainer.seed).save_pretrained(target)
    copy_tokenizer(teacher, target)


def keep_layers(teacher: Path, layers: int | list[int] | None, target: Path) -> None:
    """Writes to `target` the teacher's model with these of its layers, reading no other layer's tensors."""
    from safetensors import safe_open

    assert layers is not None  # the recipe's own rule
    config = load_config(teacher)
    inner = config.get_text_config()
    chosen = which_layers(layers, inner.num_hidden_layers)
    new_number = {old: new for new, old in enumerate(chosen)}
    for key, value in inner.to_dict().items():
        if isinstance(value, list) and len(value) == inner.num_hidden_layers:  # layer_types and their like
            setattr(inner, key, [value[number] for number in chosen])
    inner.num_hidden_layers = len(chosen)
    weights = {}
    for file in sorted(teacher.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                place = _LAYER.search(name)
                if place is None:
                    weights[name] = tensors.get_tensor(name)
                elif int(place[1]) in new_number:
                    renamed = f"{name[: place.start(1)]}{new_number[int(place[1])]}{name[place.end(1) :]}"
                    weights[renamed] = tensors.get_tensor(name)
    dtype = next(iter(weights.values())).dtype
    model = auto_class(teacher).from_config(config, dtype=dtype)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    model.tie_weights()
    own = {name for name, _ in model.named_parameters()}  # a tied head is not among them
    if own & set(missing):
        raise RequestError(f"teacher {teacher}: no weights for {sorted(own & set(missing))[0]} in its safetensors")
    model.save_pretrained(target)
    copy_tokenizer(teacher, target)
