"""Starting programs and knowing processes. Nothing else in runta starts one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runta.errors import KernelError
from runta.settings import tool_path

_TERM_GRACE = 5.0
_STAT_START_FIELD = 19  # field 22 of proc(5), counted after "pid (comm)"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A pid that can't be mistaken for a later process of the same number."""

    pid: int
    start: int
    """Clock ticks since boot, field 22 of /proc/pid/stat."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a program left."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    path: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    stdin: str | None = None,
    silent: bool = False,
    held: Sequence[int] = (),
) -> Finished:
    """Run a program to its end, with /dev/null for stdin unless text is given.

    `silent` gives it /dev/null for stdout and stderr too: for a program that hands them on to a sandbox. It holds the
    descriptors of `held` open as long as it runs.
    Raises KernelError if it can't be started, does not end in time, or (with `check`) ends with another code than 0.
    """
    words = tuple(str(word) for word in argv)
    environment = {"LC_ALL": "C.UTF-8", **(env or {}), "PATH": path or tool_path()}
    sink = subprocess.DEVNULL if silent else subprocess.PIPE
    try:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=sink,
            stderr=sink,
            env=environment,
            cwd=cwd,
            pass_fds=held,
        )
    except OSError as err:
        raise KernelError(
            f"can't start {words[0]}", cause=err.strerror, hint="`runta doctor` tells what this host lacks"
        ) from err
    try:
        if silent and stdin is None:
            _wait_ended(child, timeout)
        out, errors = child.communicate(None if stdin is None else stdin.encode(), timeout=timeout)
    except subprocess.TimeoutExpired as err:
        _end(child)
        raise KernelError(f"{words[0]} did not finish within {timeout:.0f} s", cause=" ".join(words)) from err
    except BaseException:
        _end(child)
        raise
    done = Finished(
        words, child.returncode, (out or b"").decode(errors="replace"), (errors or b"").decode(errors="replace")
    )
    if check and done.returncode != 0:
        raise KernelError(describe_failure(done), cause=_last_lines(done.stderr or done.stdout))
    return done


def _wait_ended(child: subprocess.Popen[bytes], timeout: float) -> None:
    """Return the moment a child without pipes ends, for the caller to reap: Popen's own wait looks for it in steps
    that grow to 50 ms. Raises TimeoutExpired."""
    fd = os.pidfd_open(child.pid)
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(timeout * 1000):
            raise subprocess.TimeoutExpired(child.args, timeout)
    finally:
        os.close(fd)


def describe_failure(done: Finished) -> str:
    """One sentence: killed by a signal and ended with a code are different things."""
    if done.returncode < 0:
        return f"{done.argv[0]} was killed by {signal.Signals(-done.returncode).name}"
    return f"`{' '.join(done.argv[:6])}` ended with code {done.returncode}"


def _last_lines(text: str, count: int = 6) -> str | None:
    lines = [line for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-count:]) or None


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.communicate(timeout=_TERM_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


def boot_id() -> str:
    """This boot of the host (random(4)): pids of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessId | None:
    """The process behind a pid now, or None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else ProcessId(pid, int(fields[_STAT_START_FIELD]))


def is_alive(process: ProcessId) -> bool:
    """Whether this very process runs; a zombie does not."""
    return identify(process.pid) == process


def open_pidfd(process: ProcessId) -> int | None:
    """A pidfd of this very process (pidfd_open(2)), readable once it ends; None if it is gone. The caller closes it."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if is_alive(process):
        return fd
    os.close(fd)
    return None


def kill(process: ProcessId, number: int = signal.SIGKILL) -> None:
    """Signal this very process; one that is gone is no error."""
    fd = open_pidfd(process)
    if fd is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)


def wait_gone(process: ProcessId, timeout: float) -> bool:
    """Wait until the process has ended; False if it lives on after `timeout` seconds."""
    fd = open_pidfd(process)
    if fd is None:
        return True
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(max(0, int(timeout * 1000))))
    finally:
        os.close(fd)


def wait_until(deadline: float, step: float = 0.002) -> bool:
    """Sleep one step; False once `time.monotonic()` has passed the deadline."""
    if time.monotonic() >= deadline:
        return False
    time.sleep(step)
    return True
