"""The service's doors: a Unix socket guarded by its file mode, and loopback TCP guarded by a token."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from runta.api.app import create_app
from runta.api.peers import HttpDoor, WebSocketDoor
from runta.api.sockets import ensure_token, open_tcp_socket, open_unix_socket
from runta.engine.port import Engine
from runta.layout import Layout
from runta.settings import Settings

log = logging.getLogger(__name__)

MAX_MESSAGE = 4 << 20
"""The official SDK sends about 350 KB at once; a little more than that must never be an error."""
GRACE_SECONDS = 2
READY_LOOK_SECONDS = 0.01
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where the service can be reached now."""

    socket: Path
    url: str | None = None
    """None: no TCP listener."""
    token: str | None = None


class Door(uvicorn.Server):
    """One application on one listening socket. Signals are the service's affair, not each door's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    engine: Engine,
    layout: Layout,
    settings: Settings,
    *,
    stop: asyncio.Event | None = None,
    announce: Callable[[Listening], None] | None = None,
) -> None:
    """Answer requests until SIGTERM, SIGINT or `stop`. Open exec streams are cut then; their tasks go on.

    `announce` is called once, when every door is open.
    """
    stopping = stop or asyncio.Event()
    with _opened(layout, settings) as (listeners, listening):
        apps = [create_app(engine, token=None), *(create_app(engine, token=listening.token) for _ in listeners[1:])]
        async with _running(apps, listeners) as running, _signals_setting(stopping):
            log.info("listening on %s%s", listening.socket, f" and {listening.url}" if listening.url else "")
            if announce is not None:
                announce(listening)
            waiting = asyncio.create_task(stopping.wait())
            await asyncio.wait((waiting, *running), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()


@contextmanager
def _opened(layout: Layout, settings: Settings) -> Iterator[tuple[list[socket.socket], Listening]]:
    """The listening sockets, Unix first; closed and unlinked at the end."""
    unix = open_unix_socket(layout.socket)
    mark = layout.socket.stat().st_ino
    listeners = [unix]
    try:
        listening = Listening(socket=layout.socket)
        tcp = open_tcp_socket(settings.listen, needed=settings.listen != Settings().listen) if settings.listen else None
        if tcp is not None:
            listeners.append(tcp)
            listening = Listening(socket=layout.socket, url=_name_url(tcp), token=ensure_token(layout.token))
        yield listeners, listening
    finally:
        for listener in listeners:
            listener.close()
        with suppress(FileNotFoundError):
            if layout.socket.stat().st_ino == mark:
                layout.socket.unlink()


@asynccontextmanager
async def _running(apps: list[FastAPI], listeners: list[socket.socket]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Doors that answer; at the end they are shut within GRACE_SECONDS."""
    doors = [Door(_configure(app)) for app in apps]
    tasks = [asyncio.create_task(door.serve([sock])) for door, sock in zip(doors, listeners, strict=True)]
    try:
        while not all(door.started for door in doors) and not any(task.done() for task in tasks):
            await asyncio.sleep(READY_LOOK_SECONDS)
        yield tasks
    finally:
        for app, door in zip(apps, doors, strict=True):
            app.state.house.leaving = True
            door.should_exit = True
        await asyncio.gather(*tasks)


@asynccontextmanager
async def _signals_setting(stopping: asyncio.Event) -> AsyncIterator[None]:
    """SIGTERM and SIGINT stop the service, where it runs in the main thread."""
    loop = asyncio.get_running_loop()
    caught = []
    for number in _SIGNALS:
        with suppress(ValueError, RuntimeError):
            loop.add_signal_handler(number, stopping.set)
            caught.append(number)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


def _configure(app: FastAPI) -> uvicorn.Config:
    """Low latency, no log line a request. A peer is lost when its socket says so, not when a pong is late."""
    return uvicorn.Config(
        app,
        http=HttpDoor,
        ws=WebSocketDoor,
        ws_max_size=MAX_MESSAGE,
        ws_ping_interval=20.0,
        ws_ping_timeout=None,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def _name_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
