"""`report.html`: the report as one page that asks for nothing outside itself.

`render` turns the facts into what the template shows; a section of the page has a file beside this one. Nothing here
computes a result: what the page says stands in `report.json`, or is a ratio of two numbers that do. A field that this
version does not know is shown by its name, one that is absent is left out.
"""

from __future__ import annotations

from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from distributed_kd import __version__
from distributed_kd.evaluate.figures import Figure, figure_of, place_of
from distributed_kd.evaluate.page.audit import audit_plots
from distributed_kd.evaluate.page.cache import byte_parts, cache_facts, kept_mass_plot, plain_bytes
from distributed_kd.evaluate.page.calibration import calibration_plots
from distributed_kd.evaluate.page.comparison import comparisons_of, interval_plot
from distributed_kd.evaluate.page.entropy import entropy_plots
from distributed_kd.evaluate.page.examples import example_groups
from distributed_kd.evaluate.page.retention import retention_row
from distributed_kd.evaluate.page.stages import stage_rows
from distributed_kd.evaluate.page.svg import dashes, role
from distributed_kd.evaluate.page.training import Metrics, curves_of
from distributed_kd.evaluate.page.verdict import verdict
from distributed_kd.evaluate.words import is_number, plain

_KNOWN = {
    "models", "retention", "retention_interval", "held_out", "differences", "documents_won", "cache", "stages",
    "recipe", "fingerprints",
    "members", "transferred_share", "transferred_share_interval", "calibration", "by_teacher_entropy", "examples",
    "kept_mass_by_k", "audit",
}  # fmt: skip


def render(report: dict[str, Any], metrics: Metrics) -> str:
    """The page. `metrics` has one mapping a step for each arm."""
    loader = PackageLoader("distributed_kd.evaluate.page", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    cache = report.get("cache", {})
    return environment.get_template("report.html.j2").render(
        name=report.get("recipe", {}).get("name", "unnamed"),
        version=__version__,
        verdict=verdict(report),
        retention=retention_row(report),
        held_out=report.get("held_out", {}),
        bootstrap=report.get("recipe", {}).get("evaluate", {}).get("bootstrap"),
        models=list(report["models"]),
        rows=_model_rows(report["models"]),
        differences=comparisons_of(report, report.get("differences", {})),
        interval_plot=interval_plot(report),
        further=_further(report),
        curves=curves_of(metrics),
        arms=[arm for arm, steps in metrics.items() if steps],
        calibration=calibration_plots(report.get("calibration", {})),
        entropy=entropy_plots(report.get("by_teacher_entropy", [])),
        examples=example_groups(report.get("examples", [])),
        stages=stage_rows(report.get("stages", {}), report.get("recipe", {}).get("evaluate", {}).get("price_hour")),
        cache=cache_facts(cache),
        plain_bytes=plain_bytes(cache),
        parts=byte_parts(cache),
        kept_mass=kept_mass_plot(report.get("kept_mass_by_k")),
        audit=audit_plots(report.get("audit", {})),
        recipe=yaml.safe_dump(report.get("recipe", {}), sort_keys=False, allow_unicode=True),
        fingerprints=_fingerprints(report),
        role=role,
        dashes=dashes,
    )


def _model_rows(models: dict[str, dict[str, Any]]) -> list[tuple[Figure, list[str]]]:
    keys = sorted({key for own in models.values() for key in own}, key=place_of)
    return [(figure_of(key), [figure_of(key).bare(own.get(key)) for own in models.values()]) for key in keys]


def _further(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What a later version's report says at its top level, in numbers or words."""
    rows = []
    for key, value in report.items():
        values = value if isinstance(value, list) else [value]
        if key not in _KNOWN and values and all(is_number(one) or isinstance(one, str) for one in values):
            rows.append((figure_of(key).title, " to ".join(plain(one) for one in values)))
    return rows


def _fingerprints(report: dict[str, Any]) -> dict[str, str]:
    cache = report.get("cache", {})
    own = {"tokenizer": cache.get("tokenizer_sha256"), "cache": cache.get("fingerprint")} | report.get(
        "fingerprints", {}
    )
    return {name: value for name, value in own.items() if value}
