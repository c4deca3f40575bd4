"""The page in a real browser: it says nothing on the console, asks for nothing, and fits a phone and a screen."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path

import pytest
from pypdf import PdfReader

from distributed_kd.evaluate.page.render import render
from tests import browser
from tests.evaluate.test_page import METRICS, report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.ABSENT)]


def check(page: Path, folder: Path) -> None:
    seen = browser.look(page, folder)
    assert seen.said == []
    assert set(seen.requests) == {page.as_uri()}
    assert [(view.width, view.scheme) for view in seen.views] == [
        (390, "light"), (390, "dark"), (1280, "light"), (1280, "dark"),
    ]  # fmt: skip
    for view in seen.views:
        assert view.content_width == view.width, "the page is wider than the window"
        assert view.screenshot.stat().st_size > 10_000
    papers = {view.scheme: view.background for view in seen.views}
    assert papers == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 23, 26)"}
    pages = [sheet.extract_text() for sheet in PdfReader(io.BytesIO(seen.printed)).pages]
    assert 2 <= len(pages) <= 12, "neither cut after a sheet nor a section a sheet"
    assert all(sheet.strip() for sheet in pages)
    text = "".join("".join(pages).split())  # a PDF has glyphs at places; spaces between them are a reader's guess
    hidden = re.findall(r"<details>(.*?)</details>", page.read_text(), re.DOTALL)
    assert hidden
    for one in hidden:  # closed on a screen
        said = "".join(html.unescape(re.sub(r"<[^>]+>", "", one)).split())
        assert said in text, said[:200]


def test_every_section_on_a_phone_and_a_screen_light_and_dark(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(report(), METRICS))
    check(page, tmp_path)


def test_what_a_page_asks_for_and_says_is_seen(tmp_path: Path) -> None:
    """Or the test above could not fail."""
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><p style="width: 2000px">a</p><script>nothing()</script>')
    seen = browser.look(page, tmp_path, widths=(390,))
    assert "http://127.0.0.1:9/x.png" in seen.requests
    assert any("ERR_CONNECTION_REFUSED" in one or "ERR_UNSAFE_PORT" in one for one in seen.said)
    assert any("Uncaught" in one for one in seen.said)
    assert seen.views[0].content_width >= 2000
