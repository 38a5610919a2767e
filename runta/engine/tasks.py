"""Tasks: starting and attaching, carrying detached output to disk, ending what nobody watches any more."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Mapping, Sequence

from runta.engine.box import Box
from runta.engine.core import Core
from runta.engine.idle import Idle
from runta.engine.journal import Note, shorten
from runta.errors import InvalidArgument, ServiceError
from runta.guest import GuestStream
from runta.models import Exit, Output, Runtime, TaskInfo, TaskSpec
from runta.store.tasklog import TaskLog

UNATTACHED_TIMEOUT = 60.0
"""Seconds an API-bound task may go without a client after a restart of the service, or in a fork."""
_DEFAULT_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class Attachment:
    """A client's hold on a task: the guest's stream, and what is to be done when the client lets go."""

    def __init__(self, stream: GuestStream, hold: contextlib.AsyncExitStack) -> None:
        self._stream = stream
        self._hold = hold
        self.exit_code: int | None = None

    @property
    def task(self) -> TaskInfo:
        return self._stream.task

    async def __aiter__(self) -> AsyncIterator[Output | Exit]:
        async for event in self._stream:
            if isinstance(event, Exit):
                self.exit_code = event.code
            yield event

    async def write_stdin(self, data: bytes) -> None:
        await self._stream.write_stdin(data)

    async def close_stdin(self) -> None:
        await self._stream.close_stdin()

    async def signal(self, number: int) -> None:
        await self._stream.signal(number)

    async def resize(self, rows: int, cols: int) -> None:
        await self._stream.resize(rows, cols)

    async def aclose(self) -> None:
        await self._hold.aclose()


class Tasks:
    """The tasks of live runtimes."""

    def __init__(self, core: Core, idle: Idle) -> None:
        self._core = core
        self._idle = idle

    async def start(self, ref: str, spec: TaskSpec) -> Attachment:
        """Run a command in a runtime."""
        if not spec.argv or not spec.argv[0]:
            raise InvalidArgument("command is required", hint="name a program: `runta exec NAME -- PROGRAM ARGS`")
        if any("\0" in word for word in (*spec.argv, *spec.env.values(), *spec.env)):
            raise InvalidArgument("a command can't hold a NUL byte")
        async with contextlib.AsyncExitStack() as hold:
            runtime, box = await hold.enter_async_context(self._idle.using(ref))
            command = shorten(" ".join(spec.argv))
            note = hold.enter_context(self._core.journal.recording("exec", runtime, command=command))
            stream = await box.guest.start(spec, env=compose_env(runtime, spec))
            note.details.update(task=stream.task.id, detached=spec.detached)
            return self._attach(box, stream, hold, note)
        raise AssertionError("unreachable")

    async def attach(
        self, ref: str, task_id: int, *, stdout_offset: int | None, stderr_offset: int | None
    ) -> Attachment:
        """Take over a task's output and input."""
        async with contextlib.AsyncExitStack() as hold:
            runtime, box = await hold.enter_async_context(self._idle.using(ref))
            drain = box.drains.pop(task_id, None)
            if drain is not None:
                drain.cancel()
                await asyncio.gather(drain, return_exceptions=True)
            note = hold.enter_context(self._core.journal.recording("attach", runtime, task=task_id))
            stream = await box.guest.attach(task_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset)
            return self._attach(box, stream, hold, note)
        raise AssertionError("unreachable")

    def _attach(self, box: Box, stream: GuestStream, hold: contextlib.AsyncExitStack, note: Note) -> Attachment:
        """The client's hold: what `hold` has entered is left when the client lets go."""
        kept = contextlib.AsyncExitStack()
        attachment = Attachment(stream, kept)

        def tell_end() -> None:
            note.details["exit_code"] = attachment.exit_code

        kept.push_async_callback(hold.pop_all().aclose)
        kept.callback(tell_end)
        kept.callback(lambda: self._drain(box, stream.task))
        kept.push_async_callback(stream.aclose)
        return attachment

    async def list(self, ref: str) -> Sequence[TaskInfo]:
        async with self._idle.using(ref) as (_, box):
            return await box.guest.list_tasks()

    async def signal(self, ref: str, task_id: int, number: int) -> None:
        async with self._idle.using(ref) as (runtime, box):
            with self._core.journal.recording("task.signal", runtime, task=task_id, signal=number):
                await box.guest.signal(task_id, number)

    async def adopt(self, box: Box) -> None:
        """Look after the tasks of a runtime that came back: from a restart of the service, or awake in a fork."""
        for task in await box.guest.list_tasks():
            self._drain(box, task)
            if not task.detached:
                self._core.spawn(self._expire(box, task.id), name=f"expiry of task {task.id} in {box.runtime_id}")

    async def _expire(self, box: Box, task_id: int) -> None:
        """End an API-bound task that no client came back for."""
        await asyncio.sleep(UNATTACHED_TIMEOUT)
        if self._core.boxes.get(box.runtime_id) is not box:
            return
        task = next((task for task in await box.guest.list_tasks() if task.id == task_id), None)
        if task is None or task.attached:
            return
        if task.exit_code is None:
            await box.guest.signal(task_id, signal.SIGKILL)
        else:
            await box.guest.release(task_id)

    def _drain(self, box: Box, task: TaskInfo) -> None:
        """Carry a detached task's output to disk from now on."""
        current = self._core.boxes.get(box.runtime_id)
        if task.detached and current is box and task.id not in box.drains:
            drain = asyncio.create_task(self._carry(box, task.id), name=f"log of task {task.id} in {box.runtime_id}")
            box.drains[task.id] = drain
            drain.add_done_callback(lambda _: box.drains.pop(task.id, None))

    async def _carry(self, box: Box, task_id: int) -> None:
        directory = self._core.layout.runtime(box.runtime_id).log
        with contextlib.suppress(ServiceError, OSError), TaskLog(directory, task_id) as sink:
            at = {"stdout_offset": sink.position("stdout"), "stderr_offset": sink.position("stderr")}
            stream = await box.guest.attach(task_id, **at)
            try:
                if sink.position("stdout") is None:
                    sink.note_lost(stream.task.stdout_lost + stream.task.stderr_lost)
                async for event in stream:
                    if isinstance(event, Output):
                        sink.write(event)
                    else:
                        sink.note_exit(event.code)
                        await box.guest.release(task_id)
            finally:
                await stream.aclose()


def compose_env(runtime: Runtime, spec: TaskSpec) -> Mapping[str, str]:
    """A task's complete environment: defaults, the runtime's, the task's own."""
    term = {"TERM": "xterm-256color"} if spec.tty else {}
    return {**_DEFAULT_ENV, **term, **runtime.spec.env, **spec.env}
