"""One runtime's guest init, as the engine sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from runta.errors import InvalidArgument, ServiceError, Unavailable
from runta.guest.connection import RETRY, Answer, Connection, Control, connect_socket
from runta.guest.stream import GuestStream
from runta.guest.wire import (
    OLDEST,
    ErrorKind,
    Frame,
    Refused,
    agree_on_version,
    clamp_u16,
    encode_start,
    gone,
    pack_string,
)
from runta.models import TaskInfo, TaskSpec


class Guest:
    """One runtime's guest init, reached through its socket."""

    def __init__(self, socket: Path, *, connect_timeout: float = 10.0) -> None:
        self._socket = socket
        self.connect_timeout = connect_timeout
        self._version: int | None = None
        self._gate = asyncio.Event()
        self._gate.set()
        self._in_flight = 0
        self._settled = asyncio.Event()
        self._settled.set()
        self._quiesced = False
        self._quiescing = asyncio.Lock()
        self._closed = False
        self._control: Control | None = None
        self._connecting = asyncio.Lock()
        self.streams: set[GuestStream] = set()
        self._background: set[asyncio.Task[None]] = set()

    async def wait_ready(self) -> None:
        """Return when the init answers; Unavailable if it does not in time."""
        deadline = asyncio.get_running_loop().time() + self.connect_timeout
        while True:
            try:
                async with self.passage():
                    await self._controlled()
                return
            except Unavailable:
                if self._closed or asyncio.get_running_loop().time() >= deadline:
                    raise
            await asyncio.sleep(RETRY)

    async def start(self, spec: TaskSpec, *, env: Mapping[str, str]) -> GuestStream:
        """Start a task and attach to it; `env` is its complete environment."""
        request = encode_start(spec, env)
        stream = GuestStream(self)
        async with self.passage():
            await stream.begin(Frame.START, request, "start the task")
        if spec.timeout is not None:
            stream.limit_time(spec.timeout)
        return stream

    async def attach(
        self, task_id: int, *, stdout_offset: int | None = None, stderr_offset: int | None = None
    ) -> GuestStream:
        """Attach from the given offsets, or from the oldest retained byte; takes over from another attachment."""
        offsets = (OLDEST if offset is None else offset for offset in (stdout_offset, stderr_offset))
        stream = GuestStream(self)
        async with self.passage():
            await stream.begin(Frame.ATTACH, struct.pack("<IQQ", task_id, *offsets), f"attach to task {task_id}")
        return stream

    async def list_tasks(self) -> list[TaskInfo]:
        """Running tasks, and finished ones that were not released."""
        answer = await self._ask(Frame.LIST, b"", "list its tasks")
        return sorted((record.info for record in answer.records), key=lambda info: info.id)

    async def signal(self, task_id: int, number: int) -> None:
        """To the task's process group; no error if the task has ended, NotFound if there is none."""
        if not 0 <= number <= 64:
            raise InvalidArgument(f"{number} is not a signal", hint="signals have the numbers 1 to 64")
        await self._ask(Frame.SIGNAL, struct.pack("<II", task_id, number), f"send a signal to task {task_id}")

    async def resize(self, task_id: int, rows: int, cols: int) -> None:
        """Set the size of the task's terminal, if it has one."""
        request = struct.pack("<IHH", task_id, clamp_u16(rows), clamp_u16(cols))
        await self._ask(Frame.RESIZE, request, f"resize the terminal of task {task_id}")

    async def release(self, task_id: int) -> None:
        """Forget a finished task and its output."""
        await self._ask(Frame.RELEASE, struct.pack("<I", task_id), f"release task {task_id}")

    async def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        """Open a file inside and return its descriptor; relative paths begin at /root. Raises OSError like os.open."""
        request = struct.pack("<II", flags, mode) + pack_string(path, "path")
        return (await self._ask_for_path(Frame.OPEN, request, path)).descriptor

    async def make_dirs(self, path: str) -> None:
        """Make a directory inside and its missing parents. Raises OSError."""
        await self._ask_for_path(Frame.MKDIRS, pack_string(path, "path"), path)

    async def stop(self, grace: float) -> None:
        """TERM to every process, KILL after `grace` seconds, then the init ends. Returns when that has begun."""
        await self._ask(Frame.STOP, struct.pack("<I", max(0, min(round(grace * 1000), 0xFFFFFFFF))), "stop")

    async def quiesce(self) -> None:
        """Close the gate, let requests in flight end, and return when the init has no connection left."""
        async with self._quiescing:
            if self._quiesced:
                return
            self._gate.clear()
            try:
                await self._settled.wait()
                control = await self._controlled()
                await control.ask(Frame.QUIESCE, b"")
                await control.ended.wait()  # the init closes this connection last
            except BaseException:
                self.open_gate()
                raise
            self._quiesced = True
            for stream in tuple(self.streams):
                stream.unplug()

    def assume_quiesced(self) -> None:
        """Close the gate to an init that is frozen: it was quiesced before, and nothing may be asked of it now."""
        self._gate.clear()
        self._quiesced = True

    def open_gate(self) -> None:
        """Let requests go on and streams attach again."""
        self._quiesced = False
        self._gate.set()

    async def aclose(self) -> None:
        """Close every connection. Tasks go on; streams raise Unavailable."""
        self._closed = True
        self._gate.set()
        for stream in tuple(self.streams):
            stream.fail(Unavailable("the service has let go of this runtime"))
        background = tuple(self._background)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if self._control:
            self._control.connection.close()
            self._control.on_lost()

    # -- for streams --------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def passage(self) -> AsyncIterator[None]:
        """Wait for the gate; while inside, a quiesce waits for us."""
        while not self._gate.is_set():
            await self._gate.wait()
        if self._closed:
            raise Unavailable("the service has let go of this runtime")
        self._in_flight += 1
        self._settled.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._settled.set()

    async def connect(self, on_frame: Callable[[int, int, bytes], None], on_lost: Callable[[], None]) -> Connection:
        """A connection whose peer is known to speak our version; its greeting may still be on the way."""
        try:
            async with asyncio.timeout(self.connect_timeout):
                connection = Connection(await connect_socket(self._socket), on_frame, on_lost)
                try:
                    if self._version is None:
                        connection.send(b"")
                        await connection.greeted.wait()
                        self._version = agree_on_version(connection.versions)
                except BaseException:
                    connection.close()
                    raise
        except (TimeoutError, OSError) as error:
            raise gone(error) from error
        return connection

    def release_soon(self, task_id: int) -> None:
        """Release without waiting, yet before any request that comes after."""
        if self._gate.is_set() and self._control and self._control.connection.is_open:
            self._control.post(Frame.RELEASE, struct.pack("<I", task_id))
        elif not self._closed:
            self.spawn(lambda: self.release(task_id))

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        async def quietly() -> None:
            with contextlib.suppress(ServiceError):
                await work()

        task = asyncio.create_task(quietly())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _controlled(self) -> Control:
        async with self._connecting:
            if self._control is None or not self._control.connection.is_open:
                control = Control()
                control.connection = await self.connect(control.on_frame, control.on_lost)
                self._control = control
            return self._control

    async def _request(self, kind: Frame, payload: bytes) -> Answer:
        async with self.passage():
            return await (await self._controlled()).ask(kind, payload)

    async def _ask(self, kind: Frame, payload: bytes, what: str) -> Answer:
        try:
            return await self._request(kind, payload)
        except Refused as refused:
            raise refused.translated(what) from None

    async def _ask_for_path(self, kind: Frame, payload: bytes, path: str) -> Answer:
        try:
            return await self._request(kind, payload)
        except Refused as refused:
            if refused.kind == ErrorKind.SYSTEM:
                raise OSError(refused.errno, os.strerror(refused.errno), path) from None
            raise refused.translated(f"open {path}") from None
