"""Connections to a guest init: frames and descriptors over one socket, and requests with their answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runta.guest.wire import HEADER, MAGIC, SPOKEN, Frame, Record, Refused, decode_task, gone, pack_frame

_RECEIVE = 256 << 10
_ANCILLARY = socket.CMSG_LEN(4 * struct.calcsize("i"))
RETRY = 0.002
_SOCKET_PATH_MAX = 107


@dataclass(frozen=True, slots=True)
class Answer:
    kind: int
    payload: bytes
    records: tuple[Record, ...] = ()
    descriptor: int = -1


class Connection:
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
        self._out = bytearray(pack_frame(Frame.HELLO, 0, struct.pack("<IH", MAGIC, SPOKEN[-1])))
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
        while self.is_open and len(self._in) - at >= HEADER.size:
            length, kind, tag = HEADER.unpack_from(self._in, at)
            end = at + HEADER.size + length
            if end > len(self._in):
                break
            with memoryview(self._in) as view:
                payload = bytes(view[at + HEADER.size : end])
            at = end
            self._dispatch(kind, tag, payload)
        del self._in[:at]

    def _dispatch(self, kind: int, tag: int, payload: bytes) -> None:
        if kind == Frame.WELCOME:
            _, oldest, newest = struct.unpack_from("<IHH", payload)
            self.versions = (oldest, newest)
            self.greeted.set()
        else:
            self._on_frame(kind, tag, payload)


class Control:
    """Requests and their answers over one connection."""

    def __init__(self) -> None:
        self.connection: Connection
        self.ended = asyncio.Event()
        self._next_tag = 0
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._records: list[Record] = []

    def post(self, kind: Frame, payload: bytes) -> int:
        """Ask without waiting; an answer nobody waits for is dropped."""
        self._next_tag = self._next_tag % 0xFFFF + 1
        self.connection.send(pack_frame(kind, self._next_tag, payload))
        return self._next_tag

    async def ask(self, kind: Frame, payload: bytes) -> Answer:
        if not self.connection.is_open:
            raise gone()
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        tag = self.post(kind, payload)
        self._asked[tag] = future
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                close_descriptor(future.result())
            raise
        finally:
            self._asked.pop(tag, None)

    def on_frame(self, kind: int, tag: int, payload: bytes) -> None:
        if kind == Frame.TASK:
            self._records.append(decode_task(payload))
            return
        records, self._records = tuple(self._records), []
        descriptor = self.connection.descriptors.popleft() if kind == Frame.DESCRIPTOR else -1
        answer = Answer(kind, payload, records, descriptor)
        future = self._asked.get(tag)
        if future is None or future.done():
            close_descriptor(answer)
        elif kind == Frame.ERROR:
            future.set_exception(Refused(payload))
        else:
            future.set_result(answer)

    def on_lost(self) -> None:
        self.ended.set()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(gone())


def close_descriptor(answer: Answer) -> None:
    if answer.descriptor >= 0:
        os.close(answer.descriptor)


async def connect_socket(path: Path) -> socket.socket:
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
                    await asyncio.sleep(RETRY)
        on_failure.pop_all()
    return sock
