"""This process's terminal and signals, for the time a command inside has them."""

from __future__ import annotations

import os
import select
import signal
import socket
import termios
import tty
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

STDIN, STDOUT, STDERR = 0, 1, 2


@contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Every key goes through as it is. The old state comes back whatever happens."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def caught_signals(numbers: Iterable[int]) -> Iterator[socket.socket]:
    """Yields a socket to read the numbers of arriving signals from; they do nothing else meanwhile."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    before = {}
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        for number in numbers:
            before[number] = signal.signal(number, lambda number, frame: None)
        yield ours
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        ours.close()
        theirs.close()


def terminal_size() -> tuple[int, int] | None:
    """Rows and columns of the user's terminal; None without one."""
    for fd in (STDOUT, STDIN, STDERR):
        with suppress(OSError):
            size = os.get_terminal_size(fd)
            if size.lines and size.columns:
                return size.lines, size.columns
    return None


def is_a_terminal(fd: int) -> bool:
    """Whether a descriptor is open and a terminal."""
    return os.isatty(fd)


def read_input(fd: int, limit: int) -> bytes:
    """What is there; `b""` at the end, also of a terminal that hung up and of a descriptor nobody opened."""
    try:
        return os.read(fd, limit)
    except BlockingIOError:
        select.select([fd], [], [])
        return read_input(fd, limit)
    except OSError:
        return b""


def write_output(fd: int, data: bytes) -> None:
    """All of it, also where the other end of a terminal does not block.

    Raises BrokenPipeError where nobody reads any more.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
