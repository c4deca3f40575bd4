"""The report as an artifact: what is in `WORKDIR/report`. Light, for those that only look at it."""

from __future__ import annotations

from typing import Literal

from distributed_kd.store.manifest import Manifest

FOLDER = "report"
REPORT = "report.json"
PAGE = "report.html"


class ReportManifest(Manifest):
    format: Literal["dkd-report"] = "dkd-report"
    version: Literal[1] = 1
