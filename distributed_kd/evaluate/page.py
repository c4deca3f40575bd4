from typing import Any


def render(report: dict[str, Any], metrics: dict[str, list[dict[str, Any]]], calibration: dict[str, Any]) -> str:
    return "<html>todo</html>"
