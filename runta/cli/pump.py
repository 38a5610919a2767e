"""Moves a task's bytes between the exec stream and this process: input, output, signals, the window's size."""

from __future__ import annotations

import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from runta.cli import terminal
from runta.client.blocking import Driver
from runta.client.channel import Channel
from runta.client.execution import REATTACH, SILENCE
from runta.client.local import attach_path
from runta.client.steps import TransportError
from runta.client.wire import Frame, output_of, stdin_frame
from runta.errors import ExecutionError

_CHUNK = 1 << 16
_PAUSE = 0.2
DETACH_KEY = b"\x1d"
"""Ctrl-]"""
Sink = Callable[[str, bytes], None]


class Left(Exception):
    """The user's side ends before the task."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(kw_only=True)
class Pump:
    """One task's stream. `run` returns its exit code."""

    driver: Driver
    runtime: str
    path: str
    first: Frame | None = None
    """The frame to begin with, for a task that is to be started."""
    sink: Sink
    stdin: bool = False
    """Forward our standard input."""
    window: bool = False
    """Tell changes of our terminal's size."""
    detach_key: bool = False
    task: int | None = None
    """The task's number, as soon as it is known."""

    def __post_init__(self) -> None:
        self._seen = {"stdout": 0, "stderr": 0}
        self._reading = self.stdin
        self._interrupts = 0
        self._exit: int | None = None

    @property
    def signals(self) -> list[int]:
        """Those `run` wants to be told of."""
        return [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, *([signal.SIGWINCH] if self.window else [])]

    def run(self, signals: socket.socket) -> int:
        """Until the task ends; numbers of arriving signals are read from `signals`.

        Raises Left where the user leaves first, ExecutionError where the service says so or the connection is lost for
        good.
        """
        channel = self.driver.open_channel(self.path)
        if self.first is not None:
            channel.send(self.first)
        while True:
            with channel:
                self._follow(channel, signals)
            if self._exit is not None:
                return self._exit
            channel = self._reattach(channel.end_reason)

    def _follow(self, channel: Channel, signals: socket.socket) -> None:
        """Until the task's or the connection's end."""
        heard = time.monotonic()
        while self._exit is None and not channel.ended and time.monotonic() - heard < SILENCE:
            ready = self._wait(channel, signals)
            if signals.fileno() in ready:
                self._take_signals(channel, signals)
            if terminal.STDIN in ready:
                self._forward_input(channel)
            if channel.fileno() in ready:
                heard = time.monotonic()
                for frame in channel.receive():
                    self._take(frame)

    def _wait(self, channel: Channel, signals: socket.socket) -> set[int]:
        """The descriptors with something to do. Input waits while the service does not take the last piece."""
        if channel.has_frames:
            return {channel.fileno()}
        poller = select.poll()
        poller.register(signals, select.POLLIN)
        poller.register(channel, select.POLLIN | (select.POLLOUT if channel.wants_to_send else 0))
        if self._reading and not channel.wants_to_send:
            poller.register(terminal.STDIN, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(SILENCE * 1000)}
        if channel.wants_to_send:
            channel.flush()
        return ready

    def _take(self, frame: Frame) -> None:
        kind = frame.get("type")
        if kind in self._seen:
            data = output_of(frame)
            self.sink(kind, data)
            self._seen[kind] = int(frame.get("offset", self._seen[kind])) + len(data)
        elif kind == "exit":
            self._exit = int(frame["code"])
        elif kind == "started":
            self.task = int(frame["task_id"])
        elif kind == "error":
            raise ExecutionError(str(frame.get("message", "the service told an error")))

    def _forward_input(self, channel: Channel) -> None:
        data = terminal.read_input(terminal.STDIN, _CHUNK)
        if self.detach_key and DETACH_KEY in data:
            raise Left(0)
        if data:
            channel.send(stdin_frame(data))
        else:
            self._reading = False
            channel.send({"type": "close_stdin"})

    def _take_signals(self, channel: Channel, signals: socket.socket) -> None:
        """Ctrl-C goes inside, a second one leaves; TERM and HUP leave at once."""
        for number in signals.recv(256):
            if number == signal.SIGWINCH:
                self._tell_size(channel)
            elif number == signal.SIGINT:
                self._interrupts += 1
                if self._interrupts > 1:
                    raise Left(128 + number)
                channel.send({"type": "signal", "signal": "INT"})
            elif number in (signal.SIGTERM, signal.SIGHUP):
                raise Left(128 + number)

    def _tell_size(self, channel: Channel) -> None:
        size = terminal.terminal_size()
        if size is not None:
            channel.send({"type": "resize", "rows": size[0], "cols": size[1]})

    def _reattach(self, reason: str) -> Channel:
        """The service went away: it kept the task, and its output from where we are."""
        deadline = time.monotonic() + REATTACH
        lost_input = self.stdin and not self.window
        while self.task is not None and not lost_input and time.monotonic() < deadline:
            try:
                return self.driver.open_channel(attach_path(self.runtime, self.task, self._seen))
            except TransportError:
                time.sleep(_PAUSE)
        raise ExecutionError(
            f"the connection was lost before the command's end\nwhy: {reason}\n"
            f"what to do: it may still run; see `runta tasks {self.runtime}`"
        )
