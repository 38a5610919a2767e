"""Logs of detached tasks: `runtimes/<id>/log/task-<n>.log`, bounded; what is dropped is recorded in the log itself.

Beside each stands `task-<n>.at`: how far into stdout and stderr the log goes, two 64-bit numbers, so that a service
that comes back after a crash goes on where the last one was.
"""

from __future__ import annotations

import os
import struct
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from runta.models import Output

LIMIT = 4 << 20
"""Bytes of a log file; with the one before it, twice that is kept."""
_POSITION = struct.Struct("<QQ")
_MODE_PRIVATE = 0o600


class TaskLog:
    """Appends to a task's log; at the limit, the file becomes `.old` and a new one begins."""

    def __init__(self, directory: Path, task_id: int) -> None:
        self._path = directory / f"task-{task_id}.log"
        self._old = directory / f"task-{task_id}.log.old"
        self._position = directory / f"task-{task_id}.at"
        self._at: dict[str, int] = {}
        self._size = 0

    def __enter__(self) -> Self:
        self._positions = os.open(self._position, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE_PRIVATE)
        known = os.pread(self._positions, _POSITION.size, 0)
        if len(known) == _POSITION.size:
            self._at = dict(zip(("stdout", "stderr"), _POSITION.unpack(known), strict=True))
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        os.close(self._positions)

    def _open(self) -> None:
        self._file = FileIO(str(self._path), "a")
        self._size = self._path.stat().st_size

    def position(self, stream: str) -> int | None:
        """How far into `stdout` or `stderr` the log goes; None if it is new."""
        return self._at.get(stream)

    def write(self, output: Output) -> None:
        """Append output; what the log holds already is passed over, and a gap is recorded."""
        position = self._at.get(output.stream, output.offset)
        if output.offset > position:
            self.note_lost(output.offset - position)
        data = output.data[max(0, position - output.offset) :]
        self._append(data)
        self._at[output.stream] = max(position, output.offset + len(output.data))
        os.pwrite(self._positions, _POSITION.pack(self._at.get("stdout", 0), self._at.get("stderr", 0)), 0)

    def _append(self, data: bytes) -> None:
        if self._size + len(data) > LIMIT and self._size:
            self._rotate()
        self._file.write(data)
        self._size += len(data)

    def _rotate(self) -> None:
        self._file.close()
        dropped = self._old.stat().st_size if self._old.exists() else 0
        self._path.rename(self._old)
        self._open()
        if dropped:
            self.note_lost(dropped)

    def note_lost(self, count: int) -> None:
        """Record that output is missing here."""
        if count:
            self._note(f"{count} bytes of output were dropped before this line")

    def note_exit(self, code: int) -> None:
        """Record the end of the task."""
        self._note(f"the task ended with code {code}")

    def _note(self, text: str) -> None:
        self._append(f"\n[runta: {text}]\n".encode())
