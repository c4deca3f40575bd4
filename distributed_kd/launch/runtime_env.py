"""The Ray runtime environment of a job: the user's file, and what is ours.

Ray keeps it in its job table and hands it to everybody who asks the cluster, so a secret may stand in it by name alone:
`HF_TOKEN: ${HF_TOKEN}`. Ray puts the value in on each node, from the environment that its `ray start` had there (a
Kubernetes secret, the host's profile); nothing is taken from the side that submits.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from distributed_kd.errors import RequestError
from distributed_kd.recipe import refuse_secrets

_OURS = {"working_dir": "the package and the recipe", "excludes": "what is sent"}
_SECRET_WORDS = {"SECRET", "TOKEN", "KEY", "APIKEY", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS"}
_NOT_SECRET = {"FILE", "PATH", "DIR", "GOOGLE_APPLICATION_CREDENTIALS"}  # places of secrets
_REFERENCE = re.compile(r"\$\{[A-Z0-9_]+\}")  # what Ray empties on a node that lacks it; other forms would stay as text


def runtime_env(file: str | None) -> dict[str, Any]:
    """The whole environment but its working directory. Raises `RequestError` for what Ray or we do not take."""
    given = {} if file is None else _read(file)
    where = f"--runtime-env {file}"
    refuse_secrets(given, where)
    for key, what in _OURS.items():
        if key in given:
            raise RequestError(f"{where}: {key} is for dkd to say ({what}); leave it out")
    variables = given.get("env_vars") or {}
    if "PYTHONPATH" in variables:
        raise RequestError(f"{where}: env_vars.PYTHONPATH is for dkd to say; name folders under py_modules instead")
    for name, value in variables.items():
        if _is_secret(str(name)) and not _REFERENCE.fullmatch(str(value)):
            raise RequestError(
                f"{where}: env_vars.{name} holds a secret that everybody on the cluster could read; write ${{{name}}}, "
                "and give it to the nodes' own environment"
            )
    made = given | {"env_vars": variables | {"PYTHONPATH": "."}}
    from ray.runtime_env import RuntimeEnv

    try:
        return dict(RuntimeEnv(**made))
    except (TypeError, ValueError) as error:
        raise RequestError(f"{where}: {' '.join(str(error).split())}") from error


def _read(file: str) -> dict[str, Any]:
    try:
        given = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RequestError(f"--runtime-env {file} is not YAML that can be read: {reason}") from error
    if not isinstance(given, dict) or not isinstance(given.get("env_vars") or {}, dict):
        raise RequestError(f"--runtime-env {file} is not a mapping, as Ray's runtime_env is, and its env_vars another")
    return given


def _is_secret(name: str) -> bool:
    words = name.upper().split("_")
    return bool(_SECRET_WORDS & set(words)) and not _NOT_SECRET & {words[-1], name}
