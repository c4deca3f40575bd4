"""infra/kuberay against KubeRay's own schema, and its commands against what they call."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.commands import ROOT
from tests.documented import commands, resolve
from tests.infra.commands import checked_recipe, constrained
from tests.pages import Code

FOLDER = ROOT / "infra" / "kuberay"
SCHEMA = json.loads(Path(__file__).with_name("kuberay-1.7.0.json").read_text())


def closed(node: Any) -> Any:
    """A schema that refuses unknown keys, as `kubectl --validate=strict` does."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: closed(value) for key, value in node.items()}
    if isinstance(made.get("properties"), dict) and "type" in made:
        made.setdefault("additionalProperties", False)
    return made


CLOSED = closed(SCHEMA)


def problems(manifest: dict[str, Any]) -> list[str]:
    """What KubeRay's schema has against it, a line each."""
    job = CLOSED["job"]
    if manifest["kind"] == "RayCluster":
        job = job | {"properties": job["properties"] | {"spec": {"$ref": "#/$defs/cluster"}}}
    validator = jsonschema.Draft202012Validator({"$defs": CLOSED["$defs"]} | job)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def cluster_of(name: str) -> dict[str, Any]:
    spec = manifest(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name: str) -> list[dict[str, Any]]:
    cluster = cluster_of(name)
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


NAMES = sorted(path.name for path in FOLDER.glob("*.yaml"))


def test_there_are_the_three() -> None:
    assert NAMES == ["capture.yaml", "cluster.yaml", "train.yaml"]


@pytest.mark.parametrize("name", NAMES)
def test_kuberay_takes_it(name: str) -> None:
    own = manifest(name)
    assert own["apiVersion"] == "ray.io/v1"
    assert problems(own) == []


def test_the_schema_sees_a_wrong_key_and_a_wrong_type() -> None:
    for path, key, value in (
        (("spec",), "entrypont", "dkd"),
        (("spec",), "backoffLimit", "five"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec"), "toleration", []),
    ):
        wrong = copy.deepcopy(manifest("capture.yaml"))
        node = wrong
        for part in path:
            node = node[part]
        node[key] = value
        found = problems(wrong)
        assert len(found) == 1 and (key in found[0]), found


@pytest.mark.parametrize("name", NAMES)
def test_its_pods_have_what_they_mount_and_the_ray_that_is_tested(name: str) -> None:
    assert cluster_of(name)["rayVersion"] == constrained("ray")
    for pod in pods(name):
        volumes = {volume["name"] for volume in pod["volumes"]}
        container = pod["containers"][0]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert {port["name"] for port in container["ports"]} >= {"metrics"}, "Prometheus finds it by this name"


@pytest.mark.parametrize("name", ["capture.yaml", "train.yaml"])
def test_its_command_runs_a_recipe_that_parses(name: str) -> None:
    text = (FOLDER / name).read_text()
    created = re.search(r"kubectl create configmap (\S+) --from-file=(\S+)=(\S+)", text)
    assert created is not None
    mounted = next(volume for volume in pods(name)[0]["volumes"] if "configMap" in volume)
    mount = next(m for m in pods(name)[0]["containers"][0]["volumeMounts"] if m["name"] == mounted["name"])
    assert mounted["configMap"]["name"] == created[1]
    command = shlex.split(manifest(name)["spec"]["entrypoint"])
    recipe = checked_recipe(command, {f"{mount['mountPath']}/{created[2]}": ROOT / created[3]})
    group = cluster_of(name)["workerGroupSpecs"][0]
    gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    asked = recipe.trainer.workers if name == "train.yaml" else recipe.capture.replicas
    assert asked == gpus * group["maxReplicas"], "as many as the cluster can have"
    assert recipe.workdir.startswith("s3://"), "pods come and go"


def test_captures_scale_from_none_onto_spot_nodes() -> None:
    for name in ("capture.yaml", "cluster.yaml"):
        cluster = cluster_of(name)
        group = cluster["workerGroupSpecs"][0]
        assert cluster["enableInTreeAutoscaling"] is True
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        pod = group["template"]["spec"]
        assert any("spot" in one["key"] for one in pod["tolerations"])
        assert pod["terminationGracePeriodSeconds"] <= 25, "what spot nodes are granted on GKE"
    assert "capture.device=gpu" in manifest("capture.yaml")["spec"]["entrypoint"], "or it would take processors"


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_in_its_comments_say_what_there_is(name: str) -> None:
    """Those of lines of their own, and those between backticks, read by the programs that they call."""
    text = "\n".join(line for line in (FOLDER / name).read_text().splitlines() if line.startswith("#"))
    found = [line for line in re.findall(r"^#   (.+?)(?: &)?$", text, re.MULTILINE) if not line.startswith("export ")]
    found += re.findall(r"`(dkd .+?)`", text) + re.findall(r"\$\((kubectl .+?) \|", text)
    assert f"kubectl apply -f infra/kuberay/{name}" in found
    for line in found:
        [words] = commands(Code(name, 1, "", "", line))
        resolve(words)


def test_a_mistake_in_a_kubectl_command_is_seen() -> None:
    for line in (
        "kubectl aply -f infra/kuberay/train.yaml",
        "kubectl apply -f infra/kuberay/trains.yaml",
        "kubectl get secret dkd-captures -o jsonpath={.data.auth_token}",
    ):
        with pytest.raises(ValueError, match=r"aply|trains\.yaml|dkd-captures"):
            resolve(line.split())


def test_the_standing_cluster_says_how_to_submit_to_it() -> None:
    said = re.search(r"#   (dkd submit .*)", (FOLDER / "cluster.yaml").read_text())
    assert said is not None
    command = shlex.split(said[1])
    assert checked_recipe(["dkd", *command[2:-2]], {command[3]: ROOT / command[3]}).capture.device == "gpu"
