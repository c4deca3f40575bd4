"""infra/observability: every query of the dashboard asks for numbers that exist, and Prometheus can read it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from distributed_kd.teacher.progress import GAUGES, Progress
from tests.commands import ROOT

FOLDER = ROOT / "infra" / "observability"
DASHBOARD = json.loads((FOLDER / "grafana-captures.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
SCRAPE = FOLDER / "prometheus.yml"


def test_every_query_names_a_metric_that_the_program_or_ray_exports() -> None:
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    exported = {f"ray_dkd_capture_{name}" for name in GAUGES} | {f"ray_{name}" for name in METRICS_GAUGES}
    variable = DASHBOARD["templating"]["list"][1]["query"]["query"]
    for query in [*QUERIES, variable]:
        named = set(re.findall(r"\bray_\w+", query))
        assert named, query
        assert named <= exported, query
    shown = {name for name in GAUGES if any(f"ray_dkd_capture_{name}{{" in query for query in QUERIES)}
    assert shown == GAUGES.keys(), "and all of ours are shown"
    assert all(hasattr(Progress(1, 1, 0, 0), name) for name in GAUGES)


def test_panels_lie_beside_one_another_and_ask_the_source_that_is_chosen() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    cells: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24, panel["title"]
        cells |= own
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_prometheus_reads_the_nodes_where_ray_writes_them() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    [job] = yaml.safe_load(SCRAPE.read_text())["scrape_configs"]
    [file] = job["file_sd_configs"][0]["files"]
    assert file == f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian's prometheus)")
def test_prometheus_takes_its_file_and_every_query(tmp_path: Path) -> None:
    queries = [query.replace("$cache", ".*") for query in QUERIES]
    rules = tmp_path / "rules.yml"
    recorded = [{"record": f"query{number}", "expr": query} for number, query in enumerate(queries)]
    rules.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    for kind, file in (("config", SCRAPE), ("rules", rules)):
        done = subprocess.run(["promtool", "check", kind, str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
