"""One command on the exec stream: the frames it sends, what it makes of the frames that come. No socket.

A connection that is lost while the command runs is no end: the service keeps the task and its output by offset, and the
session is taken up where it broke.
"""

from __future__ import annotations

import random
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runta.client.answers import error_of
from runta.client.local import attach_path
from runta.client.runtimes import runtime_path
from runta.client.steps import BUSY, MAX_DELAY, Reply, TransportError
from runta.client.types import CommandResult
from runta.client.wire import Frame, output_of, stdin_frame
from runta.errors import ApiError, ExecutionError
from runta.models import EXIT_TIMEOUT
from runta.rules import ENV_NAME_PATTERN

MAX_OUTPUT = 4 << 20
"""Bytes kept of each stream, unless told otherwise."""
STDIN_CHUNK = 256 * 1024
SILENCE = 75.0
"""Seconds without any frame (a heartbeat comes every 20) after which a connection counts as lost."""
REATTACH = 60.0
"""Seconds for which a lost connection is tried anew; the service keeps an unattached task as long."""


def command_argv(command: str | Sequence[str]) -> list[str]:
    """A string goes to a login shell, a sequence is taken as it is.

    Raises ValueError for an empty one.
    """
    argv = ["sh", "-lc", command] if isinstance(command, str) else [str(part) for part in command]
    if not argv or not argv[0] or command == "":
        raise ValueError("the command is empty")
    return argv


def start_frame(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | None = None,
    timeout: float | None = None,
    stdin: bool = True,
    tty: bool = False,
    size: tuple[int, int] | None = None,
    detached: bool = False,
    announce: bool = False,
) -> Frame:
    """The first frame; `size` is (rows, columns) of a terminal.

    Raises ValueError for a name no environment variable can have, and for a timeout that is not above 0.
    """
    for name in env or ():
        if not ENV_NAME_PATTERN.fullmatch(name):
            raise ValueError(f"{name!r} is not an environment variable's name")
    if timeout is not None and not timeout > 0:
        raise ValueError("timeout must be above 0 seconds")
    frame: Frame = {"type": "start", "command": argv[0], "args": list(argv[1:]), "env": dict(env or {}), "stdin": stdin}
    given = {"cwd": cwd, "user": user, "timeout": timeout}
    flags = {"tty": tty, "detached": detached, "announce": announce}
    frame |= {name: value for name, value in given.items() if value is not None}
    frame |= {name: True for name, value in flags.items() if value}
    return frame | ({} if size is None else {"rows": size[0], "cols": size[1]})


class Capture:
    """The first bytes of a stream, and how many there were."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._room = limit
        self.seen = 0

    def add(self, data: bytes) -> None:
        self.seen += len(data)
        if self._room:
            self._parts.append(data[: self._room])
            self._room -= len(self._parts[-1])

    @property
    def truncated(self) -> bool:
        return self.seen > self._limit

    @property
    def data(self) -> bytes:
        return b"".join(self._parts)


class Session:
    """One buffered execution. A shell around it opens connections and moves the bytes."""

    def __init__(
        self,
        runtime: str,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        cwd: str | None = None,
        user: str | None = None,
        max_output_bytes: int | None = None,
    ) -> None:
        limit = MAX_OUTPUT if max_output_bytes is None else max_output_bytes
        if limit < 0:
            raise ValueError("max_output_bytes must not be below 0")
        self._runtime = runtime
        self._command = shlex.join(command_argv(command))
        self._stdin = stdin.encode() if isinstance(stdin, str) else stdin
        self._start = start_frame(
            command_argv(command),
            env=env,
            cwd=cwd,
            user=user,
            timeout=timeout,
            stdin=self._stdin is not None,
            announce=True,
        )
        self._timeout = timeout
        self._begun = time.monotonic()
        self._tries = 0
        self._sent_all = False
        self._lost_since: float | None = None
        self._task: int | None = None
        self._captures = {"stdout": Capture(limit), "stderr": Capture(limit)}
        self.exit_code: int | None = None

    @property
    def path(self) -> str:
        """Where to connect: a new execution, or the task a lost connection left behind."""
        if self._task is None:
            return runtime_path(self._runtime, "exec", "stream")
        offsets = {stream: capture.seen for stream, capture in self._captures.items()}
        return attach_path(self._runtime, self._task, offsets)

    @property
    def has_stdin(self) -> bool:
        """There is more to send than the first frame."""
        return self._stdin is not None and self._task is None

    @property
    def done(self) -> bool:
        return self.exit_code is not None

    def frames(self) -> Iterator[Frame]:
        """What to send on the present connection, in order."""
        if self._task is not None:
            return
        yield self._start
        if self._stdin is not None:
            view = memoryview(self._stdin)
            for start in range(0, len(view), STDIN_CHUNK):
                yield stdin_frame(bytes(view[start : start + STDIN_CHUNK]))
            yield {"type": "close_stdin"}
        self._sent_all = True

    def take(self, frame: Mapping[str, Any]) -> None:
        """Take one frame.

        Raises ExecutionError where the service tells one.
        """
        self._lost_since = None
        kind = frame.get("type")
        if kind in self._captures:
            self._captures[kind].add(output_of(frame))
        elif kind == "exit":
            self.exit_code = int(frame["code"])
        elif kind == "started":
            self._task = int(frame["task_id"])
        elif kind == "error":
            raise ExecutionError(str(frame.get("message", "the service told an error")), self._execution_id)

    def retry_open(self, error: ApiError, attempts: int) -> float:
        """No connection: seconds to wait before `path` may be tried; nothing was sent yet.

        Raises the error where another try can't help.
        """
        if self._task is not None and (isinstance(error, TransportError) or error.status_code in BUSY):
            return self.lose(error.message)
        self._tries += 1
        passing = error.passing if isinstance(error, TransportError) else error.status_code in BUSY
        if not passing or self._tries >= attempts:
            raise error
        return random.uniform(0, min(MAX_DELAY, 2.0 ** (self._tries - 1)))

    def lose(self, reason: str) -> float:
        """The connection is gone: seconds to wait before `path` may be tried.

        Raises ExecutionError where the task can't be taken up again.
        """
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        if self._task is None or not self._sent_all or now - self._lost_since > REATTACH:
            raise ExecutionError(
                f"the connection was lost before the result of {self._command[:200]!r} came\nwhy: {reason}\n"
                "what to do: the command may have run; look at the runtime's tasks before repeating it",
                self._execution_id,
            )
        return min(1.0, 0.05 + (now - self._lost_since) / 4)

    def result(self) -> CommandResult:
        """What the command left."""
        duration = time.monotonic() - self._begun
        stdout, stderr = self._captures["stdout"], self._captures["stderr"]
        code = -1 if self.exit_code is None else self.exit_code
        errors = stderr.data
        if self._timeout is not None and code == EXIT_TIMEOUT and duration >= self._timeout:
            errors += f"Command timed out after {self._timeout:g} seconds.\n".encode()
        return CommandResult(code, stdout.data, errors, duration, stdout.truncated, stderr.truncated)

    @property
    def _execution_id(self) -> str | None:
        return None if self._task is None else str(self._task)


def refusal_error(reply: Reply, execution_id: str | None = None) -> ExecutionError:
    """The error of a handshake that was refused, with the status and code of the answer."""
    told: ApiError = error_of(reply)
    error = ExecutionError(told.message, execution_id)
    error.status_code, error.code = told.status_code, told.code
    return error
