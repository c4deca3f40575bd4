"""What a recipe names and what that needs here: packages, models, a corpus, DeepSpeed's configuration, other hosts.

The same functions look that the stages use, short of what takes minutes: nothing is fetched, converted or made.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from distributed_kd.corpus import builtin
from distributed_kd.corpus.source import list_files
from distributed_kd.doctor.finding import Finding
from distributed_kd.errors import RequestError
from distributed_kd.launch import hostfile
from distributed_kd.models.load import quantised_by
from distributed_kd.models.locate import find, package_of
from distributed_kd.models.tokenizer import tokenizer_of
from distributed_kd.recipe import Recipe, makers
from distributed_kd.student.engine import deepspeed_config, zero_stage
from distributed_kd.student.trackers import is_installed

_OF_SCHEME = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}  # URL's -> (package, our extra)


def packages(recipe: Recipe) -> Finding:
    """Those of our extras that the recipe asks for; what its models ask for is among `models`."""
    wanted: list[tuple[str, str]] = []
    for one in _all(recipe):
        schemes = [uri.partition("://")[0] for uri in (one.workdir, *one.corpus.sources) if "://" in uri]
        wanted += [_OF_SCHEME[scheme] for scheme in schemes if scheme in _OF_SCHEME]
        wanted += [package for source in one.corpus.sources for package in builtin.packages(source)]
        wanted += [("peft", "lora")] if one.student.lora is not None else []
        wanted += [(name, name) for name in one.trainer.track]
    missing = _missing(wanted)
    if missing:
        return Finding("packages", "missing", f"the recipe needs what is not installed: {missing[0]}", missing[1])
    return Finding("packages", "ok", ", ".join(dict(wanted)) or "no extra is needed")


def models(recipe: Recipe) -> Finding:
    """Each model is there, and what opens it. Weights on the hub are not fetched; a teacher may be made first."""
    named: dict[tuple[str, str | None], str] = {}
    for one in _all(recipe):
        named |= {(own.model, own.revision): "`teachers`" for own in one.teachers if own.recipe is None}
        named |= {(one.student.model, None): "`student.model`"} if one.student.model is not None else {}
        if not one.corpus.takes_features and not any(own.recipe for own in one.teachers):
            named.setdefault(tokenizer_of(one), "`corpus.tokenizer`")
    wrong: list[tuple[str, str]] = []
    wanted: list[tuple[str, str]] = []
    for (reference, revision), key in named.items():
        try:
            wanted += _opened_by(find(reference, revision, weights=False))
        except RequestError as error:
            fix = f"name a folder, .gguf file or hub id that is there in {key} (some need `hf auth login`)"
            wrong.append((str(error), _fix(reference, fix)))
    missing = _missing(wanted)
    if missing:
        wrong.append((f"what opens them is not installed: {missing[0]}", missing[1]))
    if wrong:
        found, fixes = zip(*dict.fromkeys(wrong), strict=True)
        return Finding("models", "missing", "; ".join(found), "; ".join(dict.fromkeys(fixes)))
    return Finding("models", "ok", ", ".join(str(reference) for reference, _ in named) or "none is named")


def corpora(recipe: Recipe) -> Finding:
    """Files are there that are read; what is built in is made when it is needed, by the packages of `packages`."""
    files = size = 0
    for one in _all(recipe):
        others = [source for source in one.corpus.sources if not source.startswith(builtin.PREFIX)]
        for source in others:
            try:
                found = list_files(one.corpus.model_copy(update={"source": source}))
            except RequestError as error:
                fix = _fix(source, "name a file or folder in `corpus.source` that is there and has text")
                return Finding("corpus", "missing", str(error), fix)
            files, size = files + len(found), size + sum(file.bytes for file in found)
    return Finding("corpus", "ok", f"{files:,} files, {size:,} bytes, beside what is built in")


def deepspeed(recipe: Recipe) -> Finding:
    """Its configuration goes with the recipe."""
    stage = zero_stage(deepspeed_config(recipe.trainer, 1))
    return Finding("deepspeed", "ok", f"ZeRO stage {stage}; its configuration goes with the recipe")


def hosts(recipe: Recipe) -> Finding:
    """The hostfile, and what starts ranks on its hosts."""
    if recipe.trainer.started_by != "deepspeed":
        return Finding("hosts", "ok", "no hostfile is named")
    assert recipe.trainer.hostfile is not None  # the recipe's own rule
    named = hostfile.slots(recipe.trainer.hostfile)
    missing = [program for program in ("pdsh", "ssh") if shutil.which(program) is None]
    if missing:
        fix = "apt-get install pdsh openssh-client, on this host"
        return Finding("hosts", "missing", f"ranks on other hosts need {' and '.join(missing)} here", fix)
    return Finding("hosts", "ok", f"{sum(named.values())} ranks on {len(named)} hosts, by pdsh")


def _all(recipe: Recipe) -> list[Recipe]:
    """With those that make its teachers."""
    return [*makers(recipe), recipe]


def _opened_by(model: Path) -> list[tuple[str, str]]:
    """(package, our extra) of what opens a model's folder or .gguf file."""
    if model.is_file():
        return [("gguf", "demo"), ("accelerate", "demo")]
    method = quantised_by(model)
    wanted = [("accelerate", "quantised")] if method is not None else []
    return [*wanted, ("bitsandbytes", "quantised")] if method == "bitsandbytes" else wanted


def _missing(wanted: list[tuple[str, str]]) -> tuple[str, str] | None:
    """(what is not installed, the command that installs it)."""
    extras = [extra for package, extra in dict.fromkeys(wanted) if not is_installed(package)]
    named = ",".join(dict.fromkeys(extras))
    return (named.replace(",", ", "), f"pip install 'distributed-kd[{named}]'") if extras else None


def _fix(reference: str, otherwise: str) -> str:
    package = package_of(reference)
    return f"pip install --no-deps {package}" if package and not is_installed(package) else otherwise
