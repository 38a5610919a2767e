"""Networks of runtimes: a helper process that enters their network namespaces, and the service's handle on it.

`setns(2)` changes the thread that calls it, so the service never does: this module, run as a program
(`python -m runta.kernel.network SOCKET`), is one thread that enters a runtime's namespace, does its work with netlink
(pyroute2), and returns. The createRuntime hook asks it, at run and at restore, before any process of the runtime
goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from runta.errors import KernelError
from runta.kernel.privileges import end_with_parent
from runta.settings import tool_path

_CLONE_NEWNET = 0x40000000
_LOOPBACK = 1  # the first interface of every network namespace
_STATE_MAX = 1 << 20
_READY = b"ready\n"
_MODE_PRIVATE = 0o177

_libc = ctypes.CDLL(None, use_errno=True)


class NetworkHelper:
    """The service's handle on its helper process. The helper's life is this object's, between start and close."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the helper and wait until it listens. Raises KernelError if it can't."""
        self.path.unlink(missing_ok=True)
        child = subprocess.Popen(
            [sys.executable, "-m", "runta.kernel.network", str(self.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd="/",
            env={"PATH": tool_path()},
            start_new_session=True,
        )
        if child.stdout is None or child.stdout.readline() != _READY:
            child.kill()
            child.wait()
            raise KernelError("the network helper did not start", hint="the service's log says why")
        self._child = child

    def close(self) -> None:
        """End the helper."""
        if self._child is None:
            return
        self._child.terminate()
        self._child.wait()
        if self._child.stdout:
            self._child.stdout.close()
        self._child = None
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def _entered(namespace: Path) -> Iterator[None]:
    """Run the block inside a network namespace (setns(2))."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def raise_loopback(pid: int) -> None:
    """Bring up `lo` in the network namespace of a process. Only for a single-threaded process of its own."""
    from pyroute2 import IPRoute

    with _entered(Path(f"/proc/{pid}/ns/net")), IPRoute() as route:
        route.link("set", index=_LOOPBACK, state="up")


def _answer(peer: socket.socket) -> None:
    """One request: the state of a runtime as JSON, answered `ok` or with what went wrong."""
    pieces = []
    while piece := peer.recv(65536):
        pieces.append(piece)
        if sum(map(len, pieces)) > _STATE_MAX:
            return
    try:
        raise_loopback(int(json.loads(b"".join(pieces))["pid"]))
    except Exception as err:  # noqa: BLE001 - whatever it is, the hook must hear it, and the helper must live on
        peer.sendall(f"can't bring up loopback: {type(err).__name__}: {err}\n".encode())
    else:
        peer.sendall(b"ok")


def main(path: str) -> None:
    """Listen until told to end, or until the service is gone."""
    end_with_parent(signal.SIGTERM)
    import pyroute2  # noqa: F401 - paid once, here, not in the first runtime's start

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.umask(_MODE_PRIVATE)
    listener.bind(path)
    listener.listen(64)
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    while True:
        select.select([listener], [], [])
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.settimeout(10.0)
            _answer(peer)


if __name__ == "__main__":
    main(sys.argv[1])
