"""One attachment to a task, which goes on across dumps."""

from __future__ import annotations

import asyncio
import signal as signals
import struct
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runta.errors import FailedPrecondition, InternalError, ServiceError
from runta.guest.connection import Connection
from runta.guest.wire import CHUNK, Frame, Record, Refused, decode_task, gone, pack_frame
from runta.models import EXIT_TIMEOUT, Exit, Output, TaskInfo

if TYPE_CHECKING:
    from runta.guest.client import Guest

_ACK_STEP = 64 << 10
_MERGE_BELOW = 16 << 10
_KILL_AFTER = 5.0
_STREAMS = ("stdout", "stderr")


@dataclass(slots=True)
class _Piece:
    """Output that was received and not asked for yet; small pieces grow together."""

    stream: int
    offset: int
    data: bytes | bytearray

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class GuestStream:
    """One attachment to a task: a `runta.engine.port.TaskStream`."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._connection: Connection | None = None
        self._opened: asyncio.Future[None] | None = None
        self._info: TaskInfo | None = None
        self._closed = False
        self._error: ServiceError | None = None
        self._pieces: deque[_Piece | Exit] = deque()
        self._given: _Piece | None = None
        self._wake = asyncio.Event()
        self._received = [0, 0]
        self._taken = [0, 0]
        self._acked = [0, 0]
        self._stdin_lock = asyncio.Lock()
        self._stdin_room = asyncio.Event()
        self._stdin_over = False
        self._stdin_eof = False
        self._stdin_accepted = 0
        self._stdin_limit = 0
        self._unaccepted = bytearray()
        self._timer: asyncio.Task[None] | None = None
        self._timed_out = False

    @property
    def task(self) -> TaskInfo:
        """As far as it is known here. Only a stream that was never begun has none."""
        if self._info is None:
            raise InternalError("this stream has no task yet")
        return self._info

    # -- output -------------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Output | Exit]:
        return self

    async def __anext__(self) -> Output | Exit:
        self._take()
        while not self._pieces:
            if self._error is not None and not self._closed:
                self._closed = True
                raise self._error
            if self._closed:
                raise StopAsyncIteration
            self._acknowledge(at_least=1)
            self._wake.clear()
            await self._wake.wait()
        event = self._pieces.popleft()
        if isinstance(event, Exit):
            self._finish()
            return Exit(EXIT_TIMEOUT) if self._timed_out else event
        self._given = event
        return Output(_STREAMS[event.stream], event.offset, bytes(event.data))

    def _take(self) -> None:
        """The consumer is back: what it was given last counts as taken."""
        if self._given:
            self._taken[self._given.stream] = self._given.end
            self._given = None
            self._acknowledge(at_least=_ACK_STEP)

    def _acknowledge(self, *, at_least: int) -> None:
        for stream in (0, 1):
            if self._connection and self._taken[stream] - self._acked[stream] >= at_least:
                self._acked[stream] = self._taken[stream]
                self._connection.send(pack_frame(Frame.ACK, 0, struct.pack("<BQ", stream, self._taken[stream])))

    def _finish(self) -> None:
        self._acknowledge(at_least=1)
        if not self.task.detached:
            self._guest.release_soon(self.task.id)
        self._shut()

    # -- input --------------------------------------------------------------------------------------------------------

    async def write_stdin(self, data: bytes) -> None:
        """Hand over input; waits while the task does not read. Dropped after close_stdin or the task's end."""
        rest = memoryview(data)
        async with self._stdin_lock:
            while len(rest) and not self._stdin_over:
                end = self._stdin_accepted + len(self._unaccepted)
                room = min(self._stdin_limit - end, CHUNK) if self._connection else 0
                if room <= 0:
                    self._stdin_room.clear()
                    await self._stdin_room.wait()
                    continue
                chunk = bytes(rest[:room])
                self._unaccepted += chunk
                self._send_stdin(end, chunk)
                rest = rest[room:]

    async def close_stdin(self) -> None:
        """End of input: EOF on a pipe, the EOF character on a tty."""
        async with self._stdin_lock:
            if not self._stdin_over:
                self._stdin_over = self._stdin_eof = True
                self._send_eof()

    def _send_stdin(self, offset: int, data: bytes) -> None:
        if self._connection:
            self._connection.send(pack_frame(Frame.STDIN, 0, struct.pack("<Q", offset) + data))

    def _send_eof(self) -> None:
        if self._connection:
            end = self._stdin_accepted + len(self._unaccepted)
            self._connection.send(pack_frame(Frame.STDIN_EOF, 0, struct.pack("<Q", end)))

    def _drop_stdin(self) -> None:
        self._stdin_over = True
        self._unaccepted.clear()
        self._stdin_room.set()

    # -- control ------------------------------------------------------------------------------------------------------

    async def signal(self, number: int) -> None:
        """To the task's process group."""
        await self._guest.signal(self.task.id, number)

    async def resize(self, rows: int, cols: int) -> None:
        await self._guest.resize(self.task.id, rows, cols)

    async def aclose(self) -> None:
        """Detach. The task goes on, and a time limit stays in force."""
        self._shut()

    def limit_time(self, seconds: float) -> None:
        self._timer = self._guest.spawn(lambda: self._enforce(seconds))

    async def _enforce(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        tasks = {task.id: task for task in await self._guest.list_tasks()}
        if self.task.id not in tasks or tasks[self.task.id].exit_code is not None:
            return  # it ended in time; nobody has taken its output yet
        self._timed_out = True
        await self.signal(signals.SIGTERM)
        await asyncio.sleep(_KILL_AFTER)
        await self.signal(signals.SIGKILL)

    # -- connection ---------------------------------------------------------------------------------------------------

    async def begin(self, kind: Frame, request: bytes, what: str) -> None:
        """Connect, ask, and return when the init has told the task."""
        self._opened = asyncio.get_running_loop().create_future()
        try:
            self._connection = await self._guest.connect(self._on_frame, self._on_lost)
            if self._closed or self._error:
                raise gone()
            self._connection.send(pack_frame(kind, 0, request))
            async with asyncio.timeout(self._guest.connect_timeout):
                await self._opened
        except BaseException as error:
            self._opened.cancel()
            self._let_go()
            if isinstance(error, Refused):
                raise error.translated(what) from None
            if isinstance(error, TimeoutError):
                raise gone(error) from error
            raise
        finally:
            self._opened = None
        self._guest.streams.add(self)

    async def _reattach(self) -> None:
        try:
            async with self._guest.passage():
                if not self._closed and self._error is None:
                    request = struct.pack("<IQQ", self.task.id, *self._received)
                    await self.begin(Frame.ATTACH, request, f"attach to task {self.task.id} again")
        except ServiceError as error:
            self.fail(error)

    def _on_frame(self, kind: int, tag: int, payload: bytes) -> None:
        match kind:
            case Frame.OUTPUT:
                self._on_output(payload)
            case Frame.WINDOW:
                self._on_window(*struct.unpack("<QQB", payload))
            case Frame.EXIT:
                self._on_exit(*struct.unpack("<I", payload))
            case Frame.TASK:
                self._on_task(decode_task(payload))
            case Frame.ERROR if self._opened and not self._opened.done():
                self._opened.set_exception(Refused(payload))
            case Frame.ERROR:
                self.fail(Refused(payload).translated("go on with the task"))
            case Frame.DETACHED:
                self.fail(FailedPrecondition(f"another client has attached to task {self.task.id}"))
            case _:
                self.fail(InternalError(f"the guest init sent a frame of an unknown kind ({kind})"))

    def _on_output(self, payload: bytes) -> None:
        stream, offset = struct.unpack_from("<BQ", payload)
        data = payload[9:]
        last = self._pieces[-1] if self._pieces else None
        self._received[stream] = offset + len(data)
        if (
            isinstance(last, _Piece)
            and isinstance(last.data, bytearray)
            and (last.stream, last.end) == (stream, offset)
            and len(last.data) < _MERGE_BELOW
        ):
            last.data += data
        else:
            self._pieces.append(_Piece(stream, offset, bytearray(data) if len(data) < _MERGE_BELOW else data))
        self._wake.set()

    def _on_window(self, accepted: int, limit: int, closed: int) -> None:
        del self._unaccepted[: max(0, accepted - self._stdin_accepted)]
        self._stdin_accepted = accepted
        self._stdin_limit = limit
        if closed:
            self._drop_stdin()
        self._stdin_room.set()

    def _on_exit(self, code: int) -> None:
        self._info = replace(
            self.task, exit_code=code, stdout_offset=self._received[0], stderr_offset=self._received[1]
        )
        if self._timer:
            self._timer.cancel()
        self._drop_stdin()
        self._pieces.append(Exit(code))
        self._wake.set()

    def _on_task(self, record: Record) -> None:
        """The answer to START or ATTACH: where output goes on, and how much input the init has got."""
        if self._info is None:
            self._taken, self._acked = list(record.sent), list(record.sent)
            self._stdin_accepted = record.stdin_accepted
        self._info = record.info
        self._received = list(record.sent)
        self._on_window(record.stdin_accepted, record.stdin_limit, record.stdin_closed)
        for at in range(0, len(self._unaccepted), CHUNK):
            self._send_stdin(self._stdin_accepted + at, bytes(self._unaccepted[at : at + CHUNK]))
        if self._stdin_eof and not record.stdin_closed:
            self._send_eof()
        if self._opened and not self._opened.done():
            self._opened.set_result(None)

    def _on_lost(self) -> None:
        self._connection = None
        if self._opened:
            if not self._opened.done():
                self._opened.set_exception(gone())
        elif not self._closed and self._error is None:
            self._guest.spawn(self._reattach)

    def unplug(self) -> None:
        """The init has closed our connection: come back when the gate opens."""
        if self._connection:
            self._connection.close()
            self._on_lost()

    def fail(self, error: ServiceError) -> None:
        """Nothing more will come; the consumer learns why after what it has not read yet."""
        if self._error is None:
            self._error = error
        self._let_go()

    def _shut(self) -> None:
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None
        if self._opened and not self._opened.done():
            self._opened.set_exception(self._error or gone())
        self._guest.streams.discard(self)
        self._drop_stdin()
        self._wake.set()
