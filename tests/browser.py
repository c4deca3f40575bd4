"""Looking at a page in a real browser: chromium without a window, spoken to by its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ABSENT = "there is no chromium here; Debian's package of that name has it"
_SECONDS = 60.0


@dataclass
class View:
    """The page at one width and in one colour scheme."""

    width: int
    scheme: str
    content_width: int  # wider than `width` where the page would have to be moved sideways
    background: str
    screenshot: Path


@dataclass
class Seen:
    views: list[View] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # on the console, errors and warnings that the browser logs among it
    requests: list[str] = field(default_factory=list)
    printed: bytes = b""  # as PDF


def look(page: Path, folder: Path, widths: tuple[int, ...] = (390, 1280)) -> Seen:
    """Opens the page at each width, light and dark, and prints it; screenshots of all of it go to `folder`."""
    return asyncio.run(_look(page, folder, widths))


async def _look(page: Path, folder: Path, widths: tuple[int, ...]) -> Seen:
    seen = Seen()
    async with (
        _chromium(folder / "profile") as address,
        aiohttp.ClientSession() as session,
        session.ws_connect(address, max_msg_size=0) as socket,
    ):
        tab = _Tab(socket, seen)
        await tab.open()
        for width, scheme in itertools.product(widths, ("light", "dark")):
            screenshot = folder / f"{page.stem}-{width}-{scheme}.png"
            seen.views.append(await tab.view(page.as_uri(), width, scheme, screenshot))
        seen.printed = base64.b64decode((await tab.call("Page.printToPDF", printBackground=True))["data"])
    return seen


@asynccontextmanager
async def _chromium(profile: Path) -> AsyncIterator[str]:
    assert CHROMIUM is not None
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has none
    process = subprocess.Popen(
        [
            CHROMIUM, "--headless", *sandbox, "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--no-first-run", f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        told = profile / "DevToolsActivePort"
        for _ in range(int(_SECONDS * 10)):
            lines = told.read_text().splitlines() if told.exists() else []
            if len(lines) == 2:
                break
            assert process.poll() is None, "chromium ended before it was spoken to"
            await asyncio.sleep(0.1)
        yield f"ws://127.0.0.1:{lines[0]}{lines[1]}"
    finally:
        process.terminate()
        process.wait(_SECONDS)


class _Tab:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse, seen: Seen) -> None:
        self._socket = socket
        self._seen = seen
        self._session: str | None = None
        self._numbers = itertools.count(1)
        self._loaded = False

    async def open(self) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        self._session = (await self.call("Target.attachToTarget", flatten=True, **target))["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")

    async def view(self, url: str, width: int, scheme: str, screenshot: Path) -> View:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._loaded = False
        await self.call("Page.navigate", url=url)
        while not self._loaded:
            await self._receive()
        asked = "[document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
        found = await self.call("Runtime.evaluate", expression=asked, returnByValue=True)
        taken = await self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=await self._whole())
        screenshot.write_bytes(base64.b64decode(taken["data"]))
        return View(width, scheme, *found["result"]["value"], screenshot)

    async def _whole(self) -> dict[str, float]:
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    async def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": arguments}
        await self._socket.send_json(message if self._session is None else message | {"sessionId": self._session})
        while True:
            answer = await self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    async def _receive(self) -> dict[str, Any]:
        """The next message; what it says of the page is noted."""
        message: dict[str, Any] = await self._socket.receive_json(timeout=_SECONDS)
        told = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self._seen.requests.append(told["request"]["url"])
            case "Runtime.consoleAPICalled":
                self._seen.said.append(" ".join(str(one.get("value")) for one in told["args"]))
            case "Runtime.exceptionThrown":
                self._seen.said.append(told["exceptionDetails"]["text"])
            case "Log.entryAdded":
                self._seen.said.append(told["entry"]["text"])
        return message
