"""What the API asks of the engine: the seam at which a test puts a plain object."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from typing import Protocol

from runta.errors import ServiceError
from runta.models import (
    Checkpoint,
    CheckpointKind,
    CreateRuntime,
    Event,
    EventFilter,
    Exit,
    Image,
    MemoryUse,
    Output,
    PatchRuntime,
    Runtime,
    Secret,
    TaskInfo,
    TaskSpec,
)

CALLER: ContextVar[str | None] = ContextVar("caller", default=None)
"""Who asks, as the door knows it; None: the service itself. Work that a request begins inherits it."""


class TaskStream(Protocol):
    """One attachment to a task. It goes on across a checkpoint of its runtime."""

    @property
    def task(self) -> TaskInfo: ...

    def __aiter__(self) -> AsyncIterator[Output | Exit]:
        """Output in order and complete, then one Exit. Output counts as taken when the next event is asked for."""
        ...

    async def write_stdin(self, data: bytes) -> None:
        """Hand over input; waits while the task does not read. Dropped after close_stdin or the task's end."""
        ...

    async def close_stdin(self) -> None:
        """End of input: EOF on a pipe, the EOF character on a tty."""
        ...

    async def signal(self, number: int) -> None:
        """To the task's process group."""
        ...

    async def resize(self, rows: int, cols: int) -> None: ...

    async def aclose(self) -> None:
        """Detach. The task goes on."""
        ...


class Engine(Protocol):
    """The order of things. Every method raises a ServiceError of `runta.errors` where it can't do what it says.

    `ref` is an id or a display name; an unknown one raises NotFound with what exists under a similar name.
    """

    async def create_runtime(self, request: CreateRuntime, *, idempotency_key: str | None = None) -> Runtime: ...

    async def list_runtimes(self) -> Sequence[Runtime]:
        """Oldest first."""
        ...

    async def get_runtime(self, ref: str) -> Runtime: ...

    async def measure_memory(self, ref: str) -> MemoryUse | None:
        """What its processes take now; None where it has none."""
        ...

    async def delete_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime | None:
        """None: it is gone; else it is on its way out, and what it still is."""
        ...

    async def start_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime: ...

    async def stop_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime: ...

    async def pause_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime: ...

    async def resume_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime: ...

    async def patch_runtime(
        self, ref: str, changes: PatchRuntime, *, expected_revision: int | None = None
    ) -> Runtime: ...

    async def fork_runtime(self, ref: str, names: Sequence[str | None]) -> Sequence[Runtime | ServiceError]:
        """Capture a live runtime once and restore it once for each name (None: one is made up); it goes on.

        One result for each, in order: the runtime, or its own error. Raises where the capture fails.
        """
        ...

    async def roll_back_runtime(self, ref: str, checkpoint: str) -> Runtime:
        """Put a runtime back to a checkpoint of its own lineage, under its id and name. What it did since is lost."""
        ...

    async def start_task(self, ref: str, spec: TaskSpec) -> TaskStream:
        """A command that can not be found or executed is no error here: its stream ends with Exit 127 or 126 (shell
        habit), after a line on stderr."""
        ...

    async def list_tasks(self, ref: str) -> Sequence[TaskInfo]: ...

    async def attach_task(
        self, ref: str, task_id: int, *, stdout_offset: int | None = None, stderr_offset: int | None = None
    ) -> TaskStream:
        """From the given absolute offsets, or from the oldest retained byte (None). Takes over from another
        attachment."""
        ...

    async def signal_task(self, ref: str, task_id: int, number: int) -> None:
        """To the task's process group; a task that has ended is no error."""
        ...

    async def read_file(self, ref: str, path: str) -> AsyncIterator[bytes]:
        """The content of a regular file. Relative paths begin at /root. The first step raises NotFound and the like."""
        ...

    async def write_file(self, ref: str, path: str, content: AsyncIterator[bytes], *, mode: int = 0o644) -> None:
        """Replace a file's content (an existing file keeps its mode); missing parent directories are made."""
        ...

    async def read_archive(self, ref: str, path: str) -> AsyncIterator[bytes]:
        """A tar stream of a file or directory, named by the last component of `path`, with the ids of the inside."""
        ...

    async def write_archive(self, ref: str, path: str, archive: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into the directory `path`, which is made if missing; names that climb out are refused."""
        ...

    async def create_checkpoint(self, ref: str, *, name: str | None, kind: CheckpointKind) -> Checkpoint:
        """Answers when the checkpoint is ready or failed, or as `creating` when that takes longer than a client
        waits."""
        ...

    async def list_checkpoints(self) -> Sequence[Checkpoint]:
        """Oldest first."""
        ...

    async def get_checkpoint(self, ref: str) -> Checkpoint: ...

    async def delete_checkpoint(self, ref: str) -> None: ...

    async def put_secret(self, ref: str, value: str, *, cache_ttl_secs: int) -> Secret:
        """Store a secret, or replace the value of the one with this id or name."""
        ...

    async def list_secrets(self) -> Sequence[Secret]: ...

    async def get_secret(self, ref: str) -> Secret: ...

    async def delete_secret(self, ref: str) -> None: ...

    async def list_events(self, wanted: EventFilter) -> Sequence[Event]: ...

    async def get_event(self, event_id: str) -> Event: ...

    async def list_images(self) -> Sequence[Image]: ...

    async def build_image(self, name: str) -> Image: ...

    async def import_image(self, name: str, archive: AsyncIterator[bytes]) -> Image:
        """A root file system tar, or an OCI or docker archive."""
        ...

    async def delete_image(self, ref: str) -> None: ...
