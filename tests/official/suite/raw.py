"""The service without a package between: HTTP requests and exec WebSockets, with what `runta env` says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import websockets

ENDPOINT = os.environ["RUNTA_ENDPOINT"]
TOKEN = os.environ["RUNTA_TOKEN"]
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def ask(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Status, parsed body (None: empty), headers in lower case."""
    connection = http.client.HTTPConnection(urlsplit(ENDPOINT).netloc, timeout=60)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body)
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    try:
        connection.request(method, path, data, {**HEADERS, "Content-Type": kind, **headers})
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None, {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()


@dataclass
class Command:
    """One exec WebSocket."""

    socket: Any
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    sizes: list[int] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    end: dict[str, Any] | None = None

    async def say(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def write_line(self, line: str) -> None:
        await self.say("stdin", data_base64=base64.b64encode(f"{line}\n".encode()).decode())

    async def write(self, data: bytes, *, step: int = 65536) -> None:
        for start in range(0, len(data), step):
            await self.say("stdin", data_base64=base64.b64encode(data[start : start + step]).decode())
        await self.say("close_stdin")

    async def read_until(self, enough: Any) -> None:
        while not enough(self):
            await self._take(await self.socket.recv())

    async def finish(self) -> int:
        """Read to the close; the exit code."""
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await self._take(await self.socket.recv())
        assert self.end is not None, "closed without an exit frame"
        assert self.end["type"] == "exit", self.end
        return int(self.end["code"])

    async def _take(self, text: str) -> None:
        frame = json.loads(text)
        self.frames.append(frame["type"])
        if frame["type"] in ("stdout", "stderr"):
            data = base64.b64decode(frame["data_base64"], validate=True)
            self.sizes.append(len(data))
            (self.stdout if frame["type"] == "stdout" else self.stderr).extend(data)
        elif frame["type"] in ("exit", "error"):
            assert self.end is None, "a frame after the last one"
            self.end = frame


@contextlib.asynccontextmanager
async def command(runtime_id: str, *argv: str, **fields: Any) -> AsyncIterator[Command]:
    url = ENDPOINT.replace("http", "ws", 1) + f"/v2/runtimes/{runtime_id}/exec/stream"
    async with websockets.connect(url, additional_headers=HEADERS, max_size=None, proxy=None) as socket:
        one = Command(socket)
        await one.say("start", command=argv[0], args=list(argv[1:]), **fields)
        yield one


async def run(runtime_id: str, *argv: str) -> tuple[int, bytes]:
    async with command(runtime_id, *argv) as one:
        await one.say("close_stdin")
        return await one.finish(), bytes(one.stdout)


def call(coroutine: Any) -> Any:
    return asyncio.run(coroutine)
