"""The exec WebSocket: one command a connection (API reference, section 5)."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import suppress

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from runta.api.context import House, HouseOf
from runta.api.frames import Start, parse_start, render_started
from runta.api.session import End, Session, refuse
from runta.engine.port import Engine, TaskStream
from runta.errors import ServiceError, Unavailable
from runta.models import Runtime, RuntimeStatus
from runta.rules import require_running, wakes_on_request

log = logging.getLogger(__name__)
router = APIRouter()

PATIENCE_SECONDS = 25.0
"""How long a handshake waits for a runtime that is being created; clients give up after 30."""
LOOK_SECONDS = 0.05


@router.websocket("/v2/runtimes/{ref}/exec/stream")
async def exec_stream(socket: WebSocket, house: HouseOf, ref: str) -> None:
    """Refusals before the handshake's end are HTTP statuses (section 5.3), later ones error frames."""
    runtime = await _await_running(house.engine, ref)
    await socket.accept()
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        return
    try:
        start = parse_start(message)
        stream = await house.engine.start_task(runtime.id, start.to_spec())
    except ServiceError as error:
        await refuse(socket, error)
        return
    try:
        await (_tell_detached(socket, stream) if start.detached else _attend(socket, stream, start, house, runtime.id))
    finally:
        await stream.aclose()


async def _tell_detached(socket: WebSocket, stream: TaskStream) -> None:
    """Say which task it is and hang up; the task goes on."""
    with suppress(WebSocketDisconnect):
        await socket.send_text(render_started(stream.task))
        await socket.close()


async def _attend(socket: WebSocket, stream: TaskStream, start: Start, house: House, runtime_id: str) -> None:
    """Carry the task's frames; its client's end is its end (section 5.4), but the service's own end is not."""
    session = Session(socket, stream, offsets=start.announce)
    try:
        ended = await _run_session(session, announce=start.announce)
    except Exception:
        await _kill(house.engine, runtime_id, stream.task.id)
        raise
    if ended is not End.EXITED and not house.leaving:
        await _kill(house.engine, runtime_id, stream.task.id)


async def _run_session(session: Session, *, announce: bool) -> End:
    if announce:
        try:
            await session.announce()
        except WebSocketDisconnect:
            return End.LOST
    return await session.run()


async def _kill(engine: Engine, runtime_id: str, task_id: int) -> None:
    """KILL to the task's process group; a task or runtime that is gone already needs none."""
    try:
        await engine.signal_task(runtime_id, task_id, signal.SIGKILL)
    except ServiceError as error:
        log.debug("task %s of %s could not be killed: %s", task_id, runtime_id, error)


async def _await_running(engine: Engine, ref: str) -> Runtime:
    """The runtime once it runs; one that is being created is waited for, as the hosted service does."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while (runtime := await engine.get_runtime(ref)).status is RuntimeStatus.CREATING:
        if asyncio.get_running_loop().time() > deadline:
            raise Unavailable(f"runtime {runtime.name!r} is still being created", hint="try again")
        await asyncio.sleep(LOOK_SECONDS)
    if not wakes_on_request(runtime):
        require_running(runtime)
    return runtime
