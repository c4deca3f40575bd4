"""infra/ray: the `ray up` file through Ray's own checks, the runtime environment through ours and Ray's."""

from __future__ import annotations

import re
import shlex
import tomllib
from typing import Any

import jsonschema
import pytest
import yaml

from distributed_kd.launch.runtime_env import runtime_env
from tests.commands import ROOT
from tests.infra.commands import checked_recipe, constrained

CLUSTER = ROOT / "infra" / "ray" / "cluster.yaml"
ENVIRONMENT = ROOT / "infra" / "ray" / "runtime_env.yaml"


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` does before it asks the provider for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(config)
    validate_config(filled)
    return filled


def test_ray_up_takes_the_cluster() -> None:
    filled = checked(yaml.safe_load(CLUSTER.read_text()))
    spot = filled["available_node_types"]["spot"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (spot["min_workers"], spot["resources"]["GPU"]) == (0, 1)


def test_ray_up_would_not_take_a_wrong_key() -> None:
    wrong = yaml.safe_load(CLUSTER.read_text())
    wrong["available_node_types"]["spot"]["min_worker"] = 0
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        checked(wrong)


@pytest.mark.parametrize("file", [CLUSTER, ENVIRONMENT], ids=lambda file: file.name)
def test_what_they_say_to_submit_is_a_command(file: Any) -> None:
    said = re.search(r"#   (dkd submit .*)", file.read_text())
    assert said is not None
    command = shlex.split(said[1].partition(" --")[0])
    assert checked_recipe(["dkd", *command[2:]], {command[3]: ROOT / command[3]}).workdir.startswith("s3://")


def test_the_runtime_env_has_all_that_the_package_needs_but_ray() -> None:
    found = runtime_env(str(ENVIRONMENT))
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.split(r"[\[>=]", requirement)[0] for requirement in needed]
    assert found["pip"]["packages"] == [f"{name}=={constrained(name)}" for name in [*names, "s3fs"] if name != "ray"]
    assert found["env_vars"]["HF_TOKEN"] == "${HF_TOKEN}"


def test_without_dkd_the_entry_point_is_there() -> None:
    said = re.search(r"ray job submit .* -- python (\S+) (\S+)", ENVIRONMENT.read_text())
    assert said is not None
    assert (ROOT / said[1]).exists() and (ROOT / said[2]).exists()
