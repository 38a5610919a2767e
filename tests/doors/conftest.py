"""A real service before a plain engine: uvicorn in a thread, on a Unix socket and on a loopback port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from runta.api.serve import Listening, serve
from runta.layout import Layout
from runta.settings import Settings

from .plain_engine import PlainEngine

T = TypeVar("T")


@dataclass
class Service:
    """What a test knows of the running service."""

    engine: PlainEngine
    settings: Settings
    layout: Layout
    socket: Path
    url: str
    """`http://127.0.0.1:<port>`: asks for the token; the Unix socket doesn't."""
    token: str
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the engine where the service runs."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run", listen="127.0.0.1:0")
    started: list[Service] = []
    failed: list[BaseException] = []
    ready = threading.Event()
    stop = asyncio.Event()

    async def run_service() -> None:
        layout = Layout(settings.state_dir, settings.run_dir)
        engine = PlainEngine(tmp_path / "boxes")

        def announce(listening: Listening) -> None:
            url, token = listening.url, listening.token
            if url is None or token is None:
                raise RuntimeError("the service opened no port")
            loop = asyncio.get_running_loop()
            started.append(Service(engine, settings, layout, listening.socket, url, token, loop, stop))
            ready.set()

        try:
            await serve(engine, layout, settings, stop=stop, announce=announce)
        finally:
            await engine.aclose()

    def run_thread() -> None:
        try:
            asyncio.run(run_service())
        except BaseException as err:  # noqa: BLE001 - told to the test's own thread
            failed.append(err)
        finally:
            ready.set()

    thread = threading.Thread(target=run_thread, name="service")
    thread.start()
    ready.wait(20)
    if not started:
        thread.join(20)
        raise failed[0] if failed else RuntimeError("the service did not start")
    yield started[0]
    with suppress(RuntimeError):  # The test may have stopped it.
        started[0].loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    if failed:
        raise failed[0]
