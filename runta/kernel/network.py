"""Networks of runtimes: a helper process that enters their network namespaces, and the service's handle on it.

`setns(2)` changes the thread that calls it, so the service never does: this module, run as a program
(`python -m runta.kernel.network FIFO`), is one thread that enters a runtime's namespace, does its work with netlink
(pyroute2), and returns. The createRuntime hook asks it at a restore, before any process of the runtime goes on.

The hook is a shell's builtins and two FIFOs, because it is a program that each restore waits for: a shell starts in a
millisecond, an interpreter in ten.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from runta.errors import KernelError
from runta.kernel.privileges import end_with_parent
from runta.kernel.process import wait_until
from runta.settings import tool_path

_CLONE_NEWNET = 0x40000000
_LOOPBACK = 1  # the first interface of every network namespace
_PIPE_BUF = 4096
"""Writes up to this size are not mixed up (pipe(7))."""
_READER_TIMEOUT = 5.0
_READY = b"ready\n"
_MODE_PRIVATE = 0o600

_libc = ctypes.CDLL(None, use_errno=True)


HOOK = """read -r state
pid=${state#*'"pid":'}
pid=${pid%%[!0-9]*}
echo "$2 $pid" > "$1" || exit 1
read -r answer < "$2"
[ "$answer" = ok ] && exit 0
echo "${answer:-no answer of the network helper of the service}" >&2
exit 1
"""
"""The createRuntime hook, for sh, with the helper's FIFO and one of its own as arguments. runc gives it the runtime's
state as JSON on stdin (OCI runtime specification, runtime.md, "State")."""


class NetworkHelper:
    """The service's handle on its helper process. The helper's life is this object's, between start and close."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the helper and wait until it serves. Raises KernelError if it can't."""
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


def _serve(request: str) -> None:
    """One request, `ANSWER PID`: bring up the network of that process, and write `ok` or what went wrong to the FIFO
    ANSWER, which the hook reads."""
    answer, _, pid = request.rpartition(" ")
    try:
        raise_loopback(int(pid))
        text = "ok"
    except Exception as err:  # noqa: BLE001 - whatever it is, the hook must hear it, and the helper must live on
        text = f"can't bring up loopback: {type(err).__name__}: {err}"
    with contextlib.suppress(OSError):
        _write(Path(answer), f"{text}\n".encode())


def _write(fifo: Path, text: bytes) -> None:
    """Write to a FIFO that somebody is about to read; nobody may be (ENXIO), who then waits no longer."""
    deadline = time.monotonic() + _READER_TIMEOUT
    while True:
        try:
            fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            break
        except OSError as err:
            if err.errno != errno.ENXIO or not wait_until(deadline, 0.0005):
                raise
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def main(path: str) -> None:
    """Serve requests until told to end, or until the service is gone."""
    end_with_parent(signal.SIGTERM)
    import pyroute2  # noqa: F401 - paid once, here, not in the first runtime's start

    os.mkfifo(path, _MODE_PRIVATE)
    # Held open for writing too, so that the end of one writer is not the end of the file.
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CLOEXEC), "rb", buffering=0) as requests:
        sys.stdout.buffer.write(_READY)
        sys.stdout.buffer.flush()
        left = b""
        while True:
            *lines, left = (left + requests.read(_PIPE_BUF)).split(b"\n")
            for line in lines:
                _serve(os.fsdecode(line))


if __name__ == "__main__":
    main(sys.argv[1])
