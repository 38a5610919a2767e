"""Logs of detached tasks: `runtimes/<id>/log/task-<n>.log`, bounded; what is dropped is recorded in the log itself."""

from __future__ import annotations

from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

LIMIT = 4 << 20
"""Bytes of a log file; with the one before it, twice that is kept."""


class TaskLog:
    """Appends to a task's log; at the limit, the file becomes `.old` and a new one begins."""

    def __init__(self, directory: Path, task_id: int) -> None:
        self._path = directory / f"task-{task_id}.log"
        self._old = directory / f"task-{task_id}.log.old"
        self._file: FileIO | None = None
        self._size = 0

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        self._file = FileIO(str(self._path), "a")
        self._size = self._path.stat().st_size

    def write(self, data: bytes) -> None:
        """Append output."""
        if self._size + len(data) > LIMIT and self._size:
            self._rotate()
        if self._file is not None:
            self._file.write(data)
            self._size += len(data)

    def _rotate(self) -> None:
        if self._file is not None:
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
        self.write(f"\n[runta: {text}]\n".encode())
