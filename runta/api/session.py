"""One socket joined to one task's stream, until the task exits, the socket is lost, or one of them breaks the rules."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from enum import Enum, auto
from functools import partial

from starlette.websockets import WebSocket, WebSocketDisconnect

from runta.api.envelopes import is_ours
from runta.api.frames import (
    HEARTBEAT,
    CloseStdin,
    Heartbeat,
    Resize,
    Signal,
    Stdin,
    parse_frame,
    render_error,
    render_exit,
    render_outputs,
    render_started,
)
from runta.api.lanes import Lane
from runta.engine.port import TaskStream
from runta.errors import InternalError, ServiceError
from runta.models import Exit

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 20.0
INPUT_AHEAD = 16 << 20
"""Input taken from the socket while the task does not read. Beyond it the socket is left unread, pings included."""
CONTROLS_AHEAD = 64


class End(Enum):
    """How a session ended."""

    EXITED = auto()
    LOST = auto()
    """The socket went away before the task's end."""
    REFUSED = auto()
    """An error frame was sent."""


class Session:
    """Carries frames both ways. Ends no task: whoever opened it decides what its end means."""

    def __init__(self, socket: WebSocket, stream: TaskStream, *, offsets: bool) -> None:
        self._socket = socket
        self._stream = stream
        self._offsets = offsets
        loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[None] = loop.create_future()
        self._input = Lane(INPUT_AHEAD, self._failed)
        self._controls = Lane(CONTROLS_AHEAD, self._failed)
        self._last_sent = loop.time()

    async def announce(self) -> None:
        """Tell the client which task this is."""
        await self._send(render_started(self._stream.task))

    async def run(self) -> End:
        """Carry frames until the end; the socket is closed then, or lost."""
        output = asyncio.create_task(self._carry_output())
        reading = asyncio.create_task(self._carry_input())
        beating = asyncio.create_task(self._beat())
        try:
            # The beat too: with the input full, nobody reads the socket, and only a write tells that it is lost.
            await asyncio.wait((output, reading, beating, self._failed), return_when=asyncio.FIRST_COMPLETED)
            for ended in (output, reading, beating, self._failed):
                if ended.done():
                    ended.result()
            return End.EXITED if output.done() else End.LOST
        except WebSocketDisconnect:
            return End.LOST
        except ServiceError as error:
            await refuse(self._socket, error)
            return End.REFUSED
        finally:
            jobs = (output, reading, beating, self._failed)
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            await self._input.stop()
            await self._controls.stop()

    async def _carry_output(self) -> None:
        """stdout and stderr as they come, `exit` last, then the close that clients wait for (section 17, trap 1)."""
        async for event in self._stream:
            if isinstance(event, Exit):
                await self._send(render_exit(event))
                await self._socket.close()
                return
            for frame in render_outputs(event, offsets=self._offsets):
                await self._send(frame)
        raise InternalError("the task's output ended without an exit code", hint="see the service's log")

    async def _carry_input(self) -> None:
        """Read frames until the socket goes away. A task that does not read its input does not hold up a signal."""
        while (message := await self._socket.receive())["type"] != "websocket.disconnect":
            match parse_frame(message):
                case Stdin(data):
                    await self._input.put(len(data), partial(self._stream.write_stdin, data))
                case CloseStdin():
                    await self._input.put(0, self._stream.close_stdin)
                case Signal(number):
                    await self._controls.put(1, partial(self._stream.signal, number))
                case Resize(rows, cols):
                    await self._controls.put(1, partial(self._stream.resize, rows, cols))
                case Heartbeat():
                    pass

    async def _beat(self) -> None:
        """Say something at least every 20 s: the official SDK gives up after 30 s of silence (section 17, trap 9)."""
        loop = asyncio.get_running_loop()
        while True:
            quiet = loop.time() - self._last_sent
            if quiet >= HEARTBEAT_SECONDS:
                await self._send(HEARTBEAT)
                continue
            await asyncio.sleep(HEARTBEAT_SECONDS - quiet)

    async def _send(self, frame: str) -> None:
        self._last_sent = asyncio.get_running_loop().time()
        await self._socket.send_text(frame)


async def refuse(socket: WebSocket, error: ServiceError) -> None:
    """The error frame, then the close; no exit follows (section 5.2)."""
    if is_ours(error):
        log.error("%s: %s", socket.url.path, error)
    with suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_text(render_error(error))
        await socket.close()
