"""The service's side of the guest init's protocol (rootfs/init/PROTOCOL.md). Nothing else knows it.

A `Guest` is one runtime's init; a `GuestStream` is one attachment to a task in it. Streams have a connection each, all
other requests share one. Before a dump every connection is closed (`quiesce`); afterwards streams attach again, by
offset, and their users notice nothing (`open_gate`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal as signals
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any, NoReturn

from runta.errors import (
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    NotFound,
    ServiceError,
    Unavailable,
)
from runta.models import EXIT_TIMEOUT, Exit, Output, TaskInfo, TaskSpec

_SPOKEN = range(1, 2)
"""The versions of the protocol this client speaks."""
_MAGIC = 0x41544E52
_HEADER = struct.Struct("<IHH")
_FRAME_MAX = 2 << 20
_CHUNK = 64 << 10
_ACK_STEP = 64 << 10
_RECEIVE = 256 << 10
_MERGE_BELOW = 16 << 10
_ANCILLARY = socket.CMSG_LEN(4 * struct.calcsize("i"))
_RETRY = 0.002
_KILL_AFTER = 5.0
_OLDEST = (1 << 64) - 1
_SOCKET_PATH_MAX = 107
_STREAMS = ("stdout", "stderr")


class _Frame(IntEnum):
    HELLO = 1
    START = 2
    ATTACH = 3
    STDIN = 4
    STDIN_EOF = 5
    ACK = 6
    RESIZE = 7
    SIGNAL = 8
    LIST = 9
    RELEASE = 10
    OPEN = 11
    MKDIRS = 12
    STOP = 13
    QUIESCE = 14
    WELCOME = 0x81
    OK = 0x82
    ERROR = 0x83
    TASK = 0x84
    OUTPUT = 0x85
    EXIT = 0x86
    WINDOW = 0x87
    DETACHED = 0x88
    DESCRIPTOR = 0x89


class _ErrorKind(IntEnum):
    BAD_FRAME = 1
    NO_SUCH_TASK = 2
    BAD_USER = 3
    TOO_MANY = 4
    SYSTEM = 5
    BAD_OFFSET = 6
    STILL_RUNNING = 7


class _StartFlag(IntFlag):
    TTY = 1
    STDIN = 2
    DETACHED = 4


class _TaskFlag(IntFlag):
    TTY = 1
    DETACHED = 2
    ATTACHED = 4
    EXITED = 8
    DONE = 16
    STDIN_CLOSED = 32


@dataclass(frozen=True, slots=True)
class _Record:
    """A task as a TASK frame tells it."""

    info: TaskInfo
    sent: tuple[int, int]
    """Where the attachment's output begins."""
    stdin_accepted: int
    stdin_limit: int
    stdin_closed: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    kind: int
    payload: bytes
    records: tuple[_Record, ...] = ()
    descriptor: int = -1


@dataclass(slots=True)
class _Piece:
    """Output that was received and not asked for yet; small pieces grow together."""

    stream: int
    offset: int
    data: bytes | bytearray

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class _Refused(Exception):
    """An ERROR frame, before it is known what was asked."""

    def __init__(self, payload: bytes) -> None:
        self.kind, self.errno = struct.unpack_from("<HI", payload)
        self.text = payload[6:-1].decode(errors="replace")
        super().__init__(self.text)

    def translated(self, what: str) -> ServiceError:
        """The error for what was asked for, in words such as "start a task"."""
        message = f"the guest init can't {what}"
        match self.kind:
            case _ErrorKind.NO_SUCH_TASK:
                return NotFound(
                    message, cause=self.text, hint="list the runtime's tasks; finished ones are gone once seen"
                )
            case _ErrorKind.BAD_USER:
                return InvalidArgument(message, cause=self.text, hint="use a user of the image, or a numeric uid:gid")
            case _ErrorKind.BAD_OFFSET:
                return InvalidArgument(message, cause=self.text, hint="list the tasks to see how much there is")
            case _ErrorKind.STILL_RUNNING:
                return FailedPrecondition(message, cause=self.text, hint="signal it and wait for its end")
            case _ErrorKind.TOO_MANY:
                return Unavailable(message, cause=self.text, hint="end some tasks of this runtime")
            case _ErrorKind.SYSTEM:
                return Unavailable(message, cause=self.text, hint="see whether the runtime is at one of its limits")
            case _:
                return InternalError(message, cause=self.text)


class _Connection:
    """Frames out, frames and descriptors in, over one socket. Calls back from the event loop; never blocks."""

    def __init__(
        self, sock: socket.socket, on_frame: Callable[[int, int, bytes], None], on_lost: Callable[[], None]
    ) -> None:
        self._sock = sock
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._in = bytearray()
        # The greeting leaves together with the first request: one round trip, not two.
        self._out = bytearray(_frame(_Frame.HELLO, 0, struct.pack("<IH", _MAGIC, _SPOKEN[-1])))
        self._writing = False
        self.descriptors: deque[int] = deque()
        self.versions: tuple[int, int] | None = None
        self.greeted = asyncio.Event()
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def is_open(self) -> bool:
        return self._sock.fileno() >= 0

    def send(self, data: bytes) -> None:
        if not self.is_open:
            return
        self._out += data
        if not self._writing:
            self._writable()

    def close(self) -> None:
        """No callback comes after this."""
        if not self.is_open:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self.greeted.set()
        while self.descriptors:
            os.close(self.descriptors.popleft())

    def _lost(self) -> None:
        self.close()
        self._on_lost()

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The reader sees the end as well, after what was still on its way to us.
            sent = len(self._out)
        del self._out[:sent]
        if bool(self._out) != self._writing:
            self._writing = bool(self._out)
            if self._writing:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            else:
                self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            # Not socket.recv_fds: it drops its flags.
            data, ancillary, _, _ = self._sock.recvmsg(_RECEIVE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        for _, _, content in ancillary:
            self.descriptors.extend(number for (number,) in struct.iter_unpack("i", content))
        if not data:
            self._lost()
            return
        self._in += data
        self._parse()

    def _parse(self) -> None:
        at = 0
        while self.is_open and len(self._in) - at >= _HEADER.size:
            length, kind, tag = _HEADER.unpack_from(self._in, at)
            end = at + _HEADER.size + length
            if end > len(self._in):
                break
            with memoryview(self._in) as view:
                payload = bytes(view[at + _HEADER.size : end])
            at = end
            self._dispatch(kind, tag, payload)
        del self._in[:at]

    def _dispatch(self, kind: int, tag: int, payload: bytes) -> None:
        if kind == _Frame.WELCOME:
            _, oldest, newest = struct.unpack_from("<IHH", payload)
            self.versions = (oldest, newest)
            self.greeted.set()
        else:
            self._on_frame(kind, tag, payload)


class _Control:
    """Requests and their answers over one connection."""

    def __init__(self) -> None:
        self.connection: _Connection
        self.ended = asyncio.Event()
        self._next_tag = 0
        self._asked: dict[int, asyncio.Future[_Answer]] = {}
        self._records: list[_Record] = []

    def post(self, kind: _Frame, payload: bytes) -> int:
        """Ask without waiting; an answer nobody waits for is dropped."""
        self._next_tag = self._next_tag % 0xFFFF + 1
        self.connection.send(_frame(kind, self._next_tag, payload))
        return self._next_tag

    async def ask(self, kind: _Frame, payload: bytes) -> _Answer:
        if not self.connection.is_open:
            raise _gone()
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        tag = self.post(kind, payload)
        self._asked[tag] = future
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                _close_descriptor(future.result())
            raise
        finally:
            self._asked.pop(tag, None)

    def on_frame(self, kind: int, tag: int, payload: bytes) -> None:
        if kind == _Frame.TASK:
            self._records.append(_decode_task(payload))
            return
        records, self._records = tuple(self._records), []
        descriptor = self.connection.descriptors.popleft() if kind == _Frame.DESCRIPTOR else -1
        answer = _Answer(kind, payload, records, descriptor)
        future = self._asked.get(tag)
        if future is None or future.done():
            _close_descriptor(answer)
        elif kind == _Frame.ERROR:
            future.set_exception(_Refused(payload))
        else:
            future.set_result(answer)

    def on_lost(self) -> None:
        self.ended.set()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(_gone())


class Guest:
    """One runtime's guest init, reached through its socket."""

    def __init__(self, socket: Path, *, connect_timeout: float = 10.0) -> None:
        self._socket = socket
        self._connect_timeout = connect_timeout
        self._version: int | None = None
        self._gate = asyncio.Event()
        self._gate.set()
        self._in_flight = 0
        self._settled = asyncio.Event()
        self._settled.set()
        self._quiesced = False
        self._quiescing = asyncio.Lock()
        self._closed = False
        self._control: _Control | None = None
        self._connecting = asyncio.Lock()
        self._streams: set[GuestStream] = set()
        self._background: set[asyncio.Task[None]] = set()

    async def wait_ready(self) -> None:
        """Return when the init answers; Unavailable if it does not in time."""
        deadline = asyncio.get_running_loop().time() + self._connect_timeout
        while True:
            try:
                async with self._passage():
                    await self._controlled()
                return
            except Unavailable:
                if self._closed or asyncio.get_running_loop().time() >= deadline:
                    raise
            await asyncio.sleep(_RETRY)

    async def start(self, spec: TaskSpec, *, env: Mapping[str, str]) -> GuestStream:
        """Start a task and attach to it; `env` is its complete environment."""
        request = _encode_start(spec, env)
        stream = GuestStream(self)
        async with self._passage():
            await stream._open(_Frame.START, request, "start the task")
        if spec.timeout is not None:
            stream._limit_time(spec.timeout)
        return stream

    async def attach(
        self, task_id: int, *, stdout_offset: int | None = None, stderr_offset: int | None = None
    ) -> GuestStream:
        """Attach from the given offsets, or from the oldest retained byte; takes over from another attachment."""
        offsets = (_OLDEST if offset is None else offset for offset in (stdout_offset, stderr_offset))
        stream = GuestStream(self)
        async with self._passage():
            await stream._open(_Frame.ATTACH, struct.pack("<IQQ", task_id, *offsets), f"attach to task {task_id}")
        return stream

    async def list_tasks(self) -> list[TaskInfo]:
        """Running tasks, and finished ones that were not released."""
        answer = await self._ask(_Frame.LIST, b"", "list its tasks")
        return sorted((record.info for record in answer.records), key=lambda info: info.id)

    async def signal(self, task_id: int, number: int) -> None:
        """To the task's process group; no error if the task has ended, NotFound if there is none."""
        if not 0 <= number <= 64:
            raise InvalidArgument(f"{number} is not a signal", hint="signals have the numbers 1 to 64")
        await self._ask(_Frame.SIGNAL, struct.pack("<II", task_id, number), f"send a signal to task {task_id}")

    async def resize(self, task_id: int, rows: int, cols: int) -> None:
        """Set the size of the task's terminal, if it has one."""
        request = struct.pack("<IHH", task_id, _u16(rows), _u16(cols))
        await self._ask(_Frame.RESIZE, request, f"resize the terminal of task {task_id}")

    async def release(self, task_id: int) -> None:
        """Forget a finished task and its output."""
        await self._ask(_Frame.RELEASE, struct.pack("<I", task_id), f"release task {task_id}")

    async def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        """Open a file inside and return its descriptor; relative paths begin at /root. Raises OSError like os.open."""
        request = struct.pack("<II", flags, mode) + _string(path, "path")
        return (await self._ask_for_path(_Frame.OPEN, request, path)).descriptor

    async def make_dirs(self, path: str) -> None:
        """Make a directory inside and its missing parents. Raises OSError."""
        await self._ask_for_path(_Frame.MKDIRS, _string(path, "path"), path)

    async def stop(self, grace: float) -> None:
        """TERM to every process, KILL after `grace` seconds, then the init ends. Returns when that has begun."""
        await self._ask(_Frame.STOP, struct.pack("<I", max(0, min(round(grace * 1000), 0xFFFFFFFF))), "stop")

    async def quiesce(self) -> None:
        """Close the gate, let requests in flight end, and return when the init has no connection left."""
        async with self._quiescing:
            if self._quiesced:
                return
            self._gate.clear()
            try:
                await self._settled.wait()
                control = await self._controlled()
                await control.ask(_Frame.QUIESCE, b"")
                await control.ended.wait()  # the init closes this connection last
            except BaseException:
                self.open_gate()
                raise
            self._quiesced = True
            for stream in tuple(self._streams):
                stream._unplug()

    def open_gate(self) -> None:
        """Let requests go on and streams attach again."""
        self._quiesced = False
        self._gate.set()

    async def aclose(self) -> None:
        """Close every connection. Tasks go on; streams raise Unavailable."""
        self._closed = True
        self._gate.set()
        for stream in tuple(self._streams):
            stream._fail(Unavailable("the service has let go of this runtime"))
        background = tuple(self._background)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if self._control:
            self._control.connection.close()
            self._control.on_lost()

    # -- for streams --------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _passage(self) -> AsyncIterator[None]:
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

    async def _connect(self, on_frame: Callable[[int, int, bytes], None], on_lost: Callable[[], None]) -> _Connection:
        """A connection whose peer is known to speak our version; its greeting may still be on the way."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = _Connection(await _connected(self._socket), on_frame, on_lost)
                try:
                    if self._version is None:
                        connection.send(b"")
                        await connection.greeted.wait()
                        self._version = _agree(connection.versions)
                except BaseException:
                    connection.close()
                    raise
        except (TimeoutError, OSError) as error:
            raise _gone(error) from error
        return connection

    def _release_soon(self, task_id: int) -> None:
        """Release without waiting, yet before any request that comes after."""
        if self._gate.is_set() and self._control and self._control.connection.is_open:
            self._control.post(_Frame.RELEASE, struct.pack("<I", task_id))
        elif not self._closed:
            self._spawn(lambda: self.release(task_id))

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        async def quietly() -> None:
            with contextlib.suppress(ServiceError):
                await work()

        task = asyncio.create_task(quietly())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _controlled(self) -> _Control:
        async with self._connecting:
            if self._control is None or not self._control.connection.is_open:
                control = _Control()
                control.connection = await self._connect(control.on_frame, control.on_lost)
                self._control = control
            return self._control

    async def _request(self, kind: _Frame, payload: bytes) -> _Answer:
        async with self._passage():
            return await (await self._controlled()).ask(kind, payload)

    async def _ask(self, kind: _Frame, payload: bytes, what: str) -> _Answer:
        try:
            return await self._request(kind, payload)
        except _Refused as refused:
            raise refused.translated(what) from None

    async def _ask_for_path(self, kind: _Frame, payload: bytes, path: str) -> _Answer:
        try:
            return await self._request(kind, payload)
        except _Refused as refused:
            if refused.kind == _ErrorKind.SYSTEM:
                raise OSError(refused.errno, os.strerror(refused.errno), path) from None
            raise refused.translated(f"open {path}") from None


class GuestStream:
    """One attachment to a task: a `runta.engine.port.TaskStream`."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._connection: _Connection | None = None
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
        assert self._info is not None
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
                self._connection.send(_frame(_Frame.ACK, 0, struct.pack("<BQ", stream, self._taken[stream])))

    def _finish(self) -> None:
        self._acknowledge(at_least=1)
        if not self.task.detached:
            self._guest._release_soon(self.task.id)
        self._shut()

    # -- input --------------------------------------------------------------------------------------------------------

    async def write_stdin(self, data: bytes) -> None:
        """Hand over input; waits while the task does not read. Dropped after close_stdin or the task's end."""
        rest = memoryview(data)
        async with self._stdin_lock:
            while len(rest) and not self._stdin_over:
                end = self._stdin_accepted + len(self._unaccepted)
                room = min(self._stdin_limit - end, _CHUNK) if self._connection else 0
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
            self._connection.send(_frame(_Frame.STDIN, 0, struct.pack("<Q", offset) + data))

    def _send_eof(self) -> None:
        if self._connection:
            end = self._stdin_accepted + len(self._unaccepted)
            self._connection.send(_frame(_Frame.STDIN_EOF, 0, struct.pack("<Q", end)))

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

    def _limit_time(self, seconds: float) -> None:
        self._timer = self._guest._spawn(lambda: self._enforce(seconds))

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

    async def _open(self, kind: _Frame, request: bytes, what: str) -> None:
        """Connect, ask, and return when the init has told the task."""
        self._opened = asyncio.get_running_loop().create_future()
        try:
            self._connection = await self._guest._connect(self._on_frame, self._on_lost)
            if self._closed or self._error:
                raise _gone()
            self._connection.send(_frame(kind, 0, request))
            async with asyncio.timeout(self._guest._connect_timeout):
                await self._opened
        except BaseException as error:
            self._opened.cancel()
            self._let_go()
            if isinstance(error, _Refused):
                raise error.translated(what) from None
            if isinstance(error, TimeoutError):
                raise _gone(error) from error
            raise
        finally:
            self._opened = None
        self._guest._streams.add(self)

    async def _reattach(self) -> None:
        try:
            async with self._guest._passage():
                if not self._closed and self._error is None:
                    request = struct.pack("<IQQ", self.task.id, *self._received)
                    await self._open(_Frame.ATTACH, request, f"attach to task {self.task.id} again")
        except ServiceError as error:
            self._fail(error)

    def _on_frame(self, kind: int, tag: int, payload: bytes) -> None:
        match kind:
            case _Frame.OUTPUT:
                self._on_output(payload)
            case _Frame.WINDOW:
                self._on_window(*struct.unpack("<QQB", payload))
            case _Frame.EXIT:
                self._on_exit(*struct.unpack("<I", payload))
            case _Frame.TASK:
                self._on_task(_decode_task(payload))
            case _Frame.ERROR if self._opened and not self._opened.done():
                self._opened.set_exception(_Refused(payload))
            case _Frame.ERROR:
                self._fail(_Refused(payload).translated("go on with the task"))
            case _Frame.DETACHED:
                self._fail(FailedPrecondition(f"another client has attached to task {self.task.id}"))
            case _:
                self._fail(InternalError(f"the guest init sent a frame of an unknown kind ({kind})"))

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

    def _on_task(self, record: _Record) -> None:
        """The answer to START or ATTACH: where output goes on, and how much input the init has got."""
        if self._info is None:
            self._taken, self._acked = list(record.sent), list(record.sent)
            self._stdin_accepted = record.stdin_accepted
        self._info = record.info
        self._received = list(record.sent)
        self._on_window(record.stdin_accepted, record.stdin_limit, record.stdin_closed)
        for at in range(0, len(self._unaccepted), _CHUNK):
            self._send_stdin(self._stdin_accepted + at, bytes(self._unaccepted[at : at + _CHUNK]))
        if self._stdin_eof and not record.stdin_closed:
            self._send_eof()
        if self._opened and not self._opened.done():
            self._opened.set_result(None)

    def _on_lost(self) -> None:
        self._connection = None
        if self._opened:
            if not self._opened.done():
                self._opened.set_exception(_gone())
        elif not self._closed and self._error is None:
            self._guest._spawn(self._reattach)

    def _unplug(self) -> None:
        """The init has closed our connection: come back when the gate opens."""
        if self._connection:
            self._connection.close()
            self._on_lost()

    def _fail(self, error: ServiceError) -> None:
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
            self._opened.set_exception(self._error or _gone())
        self._guest._streams.discard(self)
        self._drop_stdin()
        self._wake.set()


# -- wire -------------------------------------------------------------------------------------------------------------


def _frame(kind: int, tag: int, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), kind, tag) + payload


def _string(text: str, what: str) -> bytes:
    data = os.fsencode(text)
    if b"\0" in data:
        raise InvalidArgument(f"a NUL byte in the {what}", hint="leave it out")
    return data + b"\0"


def _u16(value: int) -> int:
    return max(0, min(value, 0xFFFF))


def _encode_start(spec: TaskSpec, env: Mapping[str, str]) -> bytes:
    if not spec.argv:
        raise InvalidArgument("there is no command to run")
    flags = _StartFlag(0)
    flags |= _StartFlag.TTY if spec.tty else flags
    flags |= _StartFlag.STDIN if spec.stdin or spec.tty else flags  # a terminal is all three, whoever types or not
    flags |= _StartFlag.DETACHED if spec.detached else flags
    request = b"".join(
        (
            struct.pack("<IHH", flags, _u16(spec.rows), _u16(spec.cols)),
            _string(spec.user or "", "user"),
            _string(spec.cwd or "", "working directory"),
            struct.pack("<I", len(spec.argv)),
            *(_string(argument, "command") for argument in spec.argv),
            struct.pack("<I", len(env)),
            *(_string(f"{name}={value}", "environment") for name, value in env.items()),
        )
    )
    if len(request) > _FRAME_MAX:
        raise InvalidArgument("the command is too long", hint="pass large data through stdin or a file")
    return request


_TASK = struct.Struct("<IIIi8Q2QI")


def _decode_task(payload: bytes) -> _Record:
    task_id, pid, bits, code, *numbers, argc = _TASK.unpack_from(payload)
    out_sent, out_end, out_lost = numbers[1:4]
    err_sent, err_end, err_lost = numbers[5:8]
    flags = _TaskFlag(bits)
    argv = payload[_TASK.size :].split(b"\0")[:argc]
    info = TaskInfo(
        id=task_id,
        pid=pid,
        argv=tuple(os.fsdecode(argument) for argument in argv),
        detached=_TaskFlag.DETACHED in flags,
        tty=_TaskFlag.TTY in flags,
        attached=_TaskFlag.ATTACHED in flags,
        exit_code=code if _TaskFlag.EXITED in flags else None,
        stdout_offset=out_end,
        stderr_offset=err_end,
        stdout_lost=out_lost,
        stderr_lost=err_lost,
    )
    return _Record(info, (out_sent, err_sent), numbers[8], numbers[9], _TaskFlag.STDIN_CLOSED in flags)


def _agree(versions: tuple[int, int] | None) -> int:
    """The newest version both sides speak."""
    if versions is None:
        raise _gone()
    oldest, newest = versions
    if oldest > _SPOKEN[-1] or newest < _SPOKEN[0]:
        _disagree(oldest, newest)
    return min(newest, _SPOKEN[-1])


def _disagree(oldest: int, newest: int) -> NoReturn:
    raise FailedPrecondition(
        "this version of runta can't talk to the runtime's guest init",
        cause=f"the init speaks protocol {oldest} to {newest}, runta speaks {_SPOKEN[0]} to {_SPOKEN[-1]}",
        hint="use the version of runta that made this runtime or checkpoint, or a newer one",
    )


def _gone(why: Exception | None = None) -> Unavailable:
    reason = "it does not answer" if isinstance(why, TimeoutError) else str(why) if why else "it closed the connection"
    return Unavailable(
        "the runtime's guest init can't be reached",
        cause=reason,
        hint="the runtime may have ended: look at its status",
    )


def _close_descriptor(answer: _Answer) -> None:
    if answer.descriptor >= 0:
        os.close(answer.descriptor)


async def _connected(path: Path) -> socket.socket:
    """A connected socket. Paths longer than sun_path go through a descriptor of their directory."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(sock.close)
        address = os.fspath(path)
        with contextlib.ExitStack() as stack:
            if len(os.fsencode(address)) > _SOCKET_PATH_MAX:
                directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, directory)
                address = f"/proc/self/fd/{directory}/{path.name}"
            while True:
                try:
                    sock.connect(address)
                    break
                except BlockingIOError:  # the init's backlog is full
                    await asyncio.sleep(_RETRY)
        on_failure.pop_all()
    return sock
