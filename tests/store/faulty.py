"""An HTTP proxy on loopback that does to a store's traffic what networks and busy servers do.

It stands in front of a real server and passes every request on, but for those that a fault is chosen for. A connection
carries one request: what is cut is that request alone.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["503", "500", "403", "late", "cut put", "stopped put", "cut get", "lost answer"]
PASSING: tuple[Kind, ...] = ("503", "500", "late", "cut put", "cut get", "lost answer")  # gone when asked again
_CODES = {
    "503": ("Slow Down", "SlowDown"), "500": ("Internal Server Error", "InternalError"),
    "403": ("Forbidden", "InvalidAccessKeyId"),
}  # fmt: skip


@dataclass
class Fault:
    """Done to the next `times` requests of this method whose path holds `path`.

    503, 500, 403: answered so, and not passed on. late: nothing is said for longer than a client waits. cut put: the
    connection ends when half of the request's body has come. stopped put: from there on nothing is read. cut get: it
    ends after half of the answer's body. lost answer: the request is passed on, and the connection ends in place of
    its answer.
    """

    kind: Kind
    method: str
    path: str = ""
    times: int = 1


@dataclass
class FaultyProxy:
    """Serves from a thread of its own between `start` and `stop`, at `endpoint`; `done` counts faults by kind.

    rate: share of requests that a passing fault of a random kind is done to, by `seed`; beside those in `faults`.
    is_down: every request is answered 503.
    held: PUTs whose path holds it wait for as long as it is set.
    late_seconds: of a late answer; more than the client waits for.
    """

    upstream_port: int
    seed: int = 0
    rate: float = 0.0
    late_seconds: float = 1.5
    is_down: bool = False
    held: str | None = None
    faults: list[Fault] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)

    def draw(self) -> None:
        """Random faults from `seed` on."""
        self._random = random.Random(self.seed)

    def start(self) -> None:
        self.draw()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty proxy", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left))
        self._loop.close()

    def _choose(self, method: str, path: str) -> Kind | None:
        self.requests.append(f"{method} {path}")
        if self.is_down:
            return "503"
        for fault in self.faults:
            if fault.times and fault.method == method and fault.path in path:
                fault.times -= 1
                return fault.kind
        return self._random.choice(PASSING) if self._random.random() < self.rate else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        length = int(headers.get("content-length", 0))
        fault = self._choose(method, path)
        if fault is not None:
            self.done[fault] += 1
        if headers.get("expect") == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault in ("cut put", "stopped put"):
            await reader.readexactly(length // 2)
            if fault == "stopped put":
                reader._transport.pause_reading()  # type: ignore[attr-defined] # or the rest is read ahead
                await asyncio.sleep(3600.0)
            return
        body = await reader.readexactly(length)
        while method == "PUT" and self.held is not None and self.held in path:
            await asyncio.sleep(0.05)
        if fault == "late":
            await asyncio.sleep(self.late_seconds)
            return
        if fault in _CODES:
            reason, code = _CODES[fault]
            text = f"<Error><Code>{code}</Code><Message>{reason}, please.</Message></Error>".encode()
            answer = f"HTTP/1.1 {fault} {reason}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode()
            writer.write(answer if method == "HEAD" else answer + text)
            await writer.drain()
            return
        kept = [line for line in lines[1:] if line and not line.lower().startswith(("connection:", "expect:"))]
        answer = await self._upstream("\r\n".join([lines[0], *kept, "Connection: close"]).encode() + b"\r\n\r\n" + body)
        if fault == "lost answer":
            return
        end = answer.index(b"\r\n\r\n") + 4
        writer.write(answer[: end + (len(answer) - end) // 2] if fault == "cut get" else answer)
        await writer.drain()

    async def _upstream(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer
