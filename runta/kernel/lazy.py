"""Memory that comes in after a restore: CRIU's lazy-pages daemon, called the pager here.

The restored processes run before their memory is there. The pager holds a userfaultfd of each, answers their page
faults from the dump, copies the rest meanwhile, and ends when all is in. It needs no special dump: CRIU marks the
pages of private anonymous memory in every one.

It lives in a session of its own and holds nothing of the service, which may end meanwhile. If it ended before its
work is done, the kernel would fill what is missing with zeros: so a file tells that it finished, and without that
file the runtime must not go on.

Sources: criu(8), criu/uffd.c; userfaultfd(2); the kernel's userfaultfd.rst and fs/userfaultfd.c.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import select
import signal
import threading
from pathlib import Path

import prctl

from runta.errors import KernelError
from runta.kernel.process import ProcessId, is_alive, run

LOG = "lazy-pages.log"
_PID = "lazy-pages.pid"
_DONE = "lazy-pages.done"
_SCRIPT = """read -r stat < /proc/$$/stat
start=$(echo "${stat##*) }" | cut -d " " -f 20)
echo "$$ $start" > "$1" && complete=$2 && shift 2 && "$@" && : > "$complete"
"""
_START_TIMEOUT = 20.0
_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_libc = ctypes.CDLL(None, use_errno=True)


def try_userfaultfd() -> str | None:
    """Ask the kernel for a userfaultfd as a process in a user namespace may; None, or why there is none.

    CRIU makes it inside the restored process, which has no capability of the host. The kernel wants CAP_SYS_PTRACE
    there, or the sysctl vm.unprivileged_userfaultfd. The trial is a thread that lays that capability down: it is lost
    with the thread.
    """
    found: list[str | None] = []
    trial = threading.Thread(target=lambda: found.append(_try_unprivileged()), name="userfaultfd")
    trial.start()
    trial.join()
    return found[0] if found else "it could not be tried"


def _try_unprivileged() -> str | None:
    number = _SYS_USERFAULTFD.get(platform.machine())
    if number is None:
        return f"it is not known how to ask on {platform.machine()}"
    prctl.cap_effective.sys_ptrace = False
    fd = int(_libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK))
    if fd < 0:
        return os.strerror(ctypes.get_errno())
    os.close(fd)
    return None


def start_pager(criu: str, *, dump: Path, work: Path, path: str) -> ProcessId:
    """Start the pager of one restore; when this returns it listens in `work`, which the restore must be given too.

    `path` is PATH for it. Raises KernelError if it does not start.
    """
    for name in (LOG, _PID, _DONE):
        (work / name).unlink(missing_ok=True)
    words = (criu, "lazy-pages", "--images-dir", dump, "--work-dir", work, "--log-file", LOG)
    reader, writer = os.pipe()
    try:
        ours = ("setsid", "--fork", "sh", "-c", _SCRIPT, "pager", work / _PID, work / _DONE)
        run((*ours, *words, "--status-fd", str(writer)), timeout=_START_TIMEOUT, path=path, silent=True, held=[writer])
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    ready = _becomes_ready(reader)
    pager = find_pager(work)
    if pager is None or not ready:
        if pager is not None:
            end_pager(pager)
        raise KernelError("CRIU's pager did not start", cause=_last_line(work / LOG))
    return pager


def _becomes_ready(reader: int) -> bool:
    """CRIU writes one byte once it listens; an end without one is a failure."""
    try:
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        return bool(poller.poll(int(_START_TIMEOUT * 1000))) and os.read(reader, 1) != b""
    finally:
        os.close(reader)


def find_pager(work: Path) -> ProcessId | None:
    """The pager that was started with this work directory, as its file says; it may have ended since."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid, start = (work / _PID).read_text().split()
        return ProcessId(int(pid), int(start))
    return None


def is_complete(work: Path) -> bool:
    """Whether the pager ended with everything in."""
    return (work / _DONE).exists()


def end_pager(pager: ProcessId) -> None:
    """Kill the pager and its shell. Only for a runtime whose processes are gone: their memory would be lost."""
    if is_alive(pager):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pager.pid, signal.SIGKILL)


def reap_pager(pager: ProcessId) -> None:
    """Collect the exit status of a pager that has ended, if it is this process's to collect."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pager.pid, 0)


def _last_line(log: Path) -> str | None:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else None
