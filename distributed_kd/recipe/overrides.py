"""`key.path=value` on a command line, applied to what a recipe's YAML holds."""

from __future__ import annotations

from typing import Any

import yaml

from distributed_kd.errors import RequestError


def apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RequestError(f"override {override!r} is not of the form key.path=value")
    *parents, last = key.split(".")
    node: Any = data
    for name in parents:
        node = _child(node, name, key)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RequestError(f"override {override!r}: the value is not YAML") from error
    if isinstance(node, list):
        node[_list_position(node, last, key)] = parsed
    else:
        node[last] = parsed


def _child(node: Any, name: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_list_position(node, name, key)]
    if not isinstance(node.get(name), dict | list):
        node[name] = {}
    return node[name]


def _list_position(node: list[Any], name: str, key: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise RequestError(f"override {key}: {name!r} is not a place in a list of {len(node)}")
    return int(name)
