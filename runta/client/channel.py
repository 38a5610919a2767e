"""An exec stream on a plain blocking-world socket, driven by whoever polls it. No threads."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from runta.client.connecting import connect, transport_error
from runta.client.endpoint import Endpoint
from runta.client.execution import SILENCE, Session, refusal_error
from runta.client.wire import Frame, Wire
from runta.errors import ApiError

READ_SIZE = 1 << 18
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Channel:
    """One open WebSocket. The socket does not block: wait until it is ready, then `receive` or `flush`."""

    def __init__(self, sock: socket.socket, wire: Wire) -> None:
        self._sock = sock
        self._wire = wire
        self._out = memoryview(b"")
        self._early: list[Frame] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def ended(self) -> bool:
        """No frame will come any more."""
        return self._wire.ended and not self._early

    @property
    def end_reason(self) -> str:
        return self._wire.end_reason

    @property
    def has_frames(self) -> bool:
        """Some came right behind the handshake: `receive` without waiting."""
        return bool(self._early)

    @property
    def wants_to_send(self) -> bool:
        """Something could not be sent yet."""
        return bool(self._out)

    def send(self, frame: Mapping[str, Any]) -> None:
        """Queue a frame and send as much as the socket takes."""
        self._wire.send(frame)
        self.flush()

    def flush(self) -> None:
        """Send as much as the socket takes."""
        fresh = self._wire.outgoing()
        if fresh:
            self._out = memoryview(bytes(self._out) + fresh)
        try:
            while self._out:
                self._out = self._out[self._sock.send(self._out) :]
        except _LATER:
            pass
        except OSError:
            self._out = memoryview(b"")  # The end is told by the reading side.

    def receive(self) -> list[Frame]:
        """The frames that are here; empty where none is complete yet."""
        frames, self._early = self._early, []
        try:
            while not self._wire.ended:
                data = self._sock.recv(READ_SIZE)
                frames += self._wire.feed(data)
                if len(data) < READ_SIZE and not isinstance(self._sock, ssl.SSLSocket):
                    break
        except _LATER:
            pass
        except OSError:
            frames += self._wire.feed(b"")
        self.flush()
        return frames

    def keep_early(self) -> None:
        """Receive, and keep what came right behind the handshake for the next `receive`."""
        self._early = self.receive()

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to receive, sending meanwhile; False after `seconds` without."""
        if self._early:
            return True
        poller = select.poll()
        poller.register(self._sock, select.POLLIN | (select.POLLOUT if self._out else 0))
        events = poller.poll(seconds * 1000)
        if self._out:
            self.flush()
        return bool(events)

    def close(self) -> None:
        """Say goodbye if that can be done at once, and close."""
        self._wire.close()
        self.flush()
        self._sock.close()


def open_channel(endpoint: Endpoint, path: str, timeout: float) -> Channel:
    """Connect and shake hands within `timeout` seconds.

    Raises ExecutionError with the status where the service refuses, TransportError where it does not answer.
    """
    sock = connect(endpoint, timeout)
    sock.setblocking(False)
    try:
        wire = Wire(endpoint, path)
        channel = Channel(sock, wire)
        _shake_hands(channel, wire, timeout)
    except BaseException:
        sock.close()
        raise
    return channel


def run_session(session: Session, endpoint: Endpoint, *, timeout: float, attempts: int) -> None:
    """Run a command to its end, across lost connections."""
    while not session.done:
        try:
            channel = open_channel(endpoint, session.path, timeout)
        except ApiError as err:
            time.sleep(session.retry_open(err, attempts))
            continue
        with channel:
            _pump(session, channel)
        if not session.done:
            time.sleep(session.lose(channel.end_reason))


def _pump(session: Session, channel: Channel) -> None:
    """Send what the socket takes, take what comes, until the exit or the connection's end."""
    frames = session.frames()
    more = True
    while not session.done and not channel.ended:
        while more and not channel.wants_to_send:
            frame = next(frames, None)
            more = frame is not None
            if frame is not None:
                channel.send(frame)
        if not channel.wait(SILENCE):
            return
        _take_all(session, channel.receive())


def _take_all(session: Session, frames: Iterable[Frame]) -> None:
    for frame in frames:
        session.take(frame)


def _shake_hands(channel: Channel, wire: Wire, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    channel.flush()
    while not wire.accepted:
        left = deadline - time.monotonic()
        if left <= 0 or not channel.wait(left):
            raise transport_error(TimeoutError(f"no answer within {timeout:g} seconds"))
        channel.keep_early()
        if wire.refusal is not None:
            raise refusal_error(wire.refusal)
        if wire.ended and not wire.accepted:
            raise transport_error(ConnectionError(wire.end_reason))
