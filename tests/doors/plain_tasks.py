"""Tasks of the plain engine: real local processes, so that streams, signals and exit codes are real."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from runta.models import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_TIMEOUT, Exit, Output, TaskInfo, TaskSpec

CHUNK = 65536
AHEAD = 1 << 20
"""How much output may lie untaken before an API-bound task has to wait."""
END_OF_INPUT = b"\x04"


class PlainTask:
    """One process and everything it wrote, in the order it came."""

    def __init__(self, number: int, spec: TaskSpec) -> None:
        self.number = number
        self.spec = spec
        self.pid = 0
        self.exit_code: int | None = None
        self.outputs: list[Output] = []
        self.written = {"stdout": 0, "stderr": 0}
        self.taken = {"stdout": 0, "stderr": 0}
        self.changed = asyncio.Condition()
        self.attachment: PlainStream | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.terminal: int | None = None
        self._stdin: asyncio.StreamWriter | None = None
        self._jobs: list[asyncio.Task[None]] = []

    @property
    def info(self) -> TaskInfo:
        return TaskInfo(
            id=self.number,
            pid=self.pid,
            argv=self.spec.argv,
            detached=self.spec.detached,
            tty=self.spec.tty,
            attached=self.attachment is not None,
            exit_code=self.exit_code,
            stdout_offset=self.written["stdout"],
            stderr_offset=self.written["stderr"],
        )

    async def start(self, env: Mapping[str, str], cwd: str) -> None:
        """Run the command; one that can't be found or executed is told on stderr, and ends with 127 or 126."""
        try:
            await (self._start_on_terminal(env, cwd) if self.spec.tty else self._start_on_pipes(env, cwd))
        except (FileNotFoundError, PermissionError, NotADirectoryError) as err:
            await self._keep("stderr", f"{self.spec.argv[0]}: {err.strerror}\n".encode())
            missing = isinstance(err, FileNotFoundError)
            await self._finish(EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE)

    async def _start_on_pipes(self, env: Mapping[str, str], cwd: str) -> None:
        self.process = process = await asyncio.create_subprocess_exec(
            *self.spec.argv,
            stdin=asyncio.subprocess.PIPE if self.spec.stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
        if process.stdout is None or process.stderr is None:
            raise RuntimeError("a process without the pipes it was started with")
        self._stdin = process.stdin
        self._watch(process, {"stdout": process.stdout, "stderr": process.stderr})

    async def _start_on_terminal(self, env: Mapping[str, str], cwd: str) -> None:
        ours, theirs = pty.openpty()
        try:
            self.set_size(self.spec.rows, self.spec.cols, terminal=ours)
            self.process = process = await asyncio.create_subprocess_exec(
                "setsid", "--ctty", *self.spec.argv, stdin=theirs, stdout=theirs, stderr=theirs, env=dict(env), cwd=cwd
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self.terminal = ours
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(ours), "rb", 0))
        self._watch(process, {"stdout": reader})

    def _watch(self, process: asyncio.subprocess.Process, readers: Mapping[str, asyncio.StreamReader]) -> None:
        self.pid = process.pid
        pumps = [asyncio.create_task(self._pump(name, reader)) for name, reader in readers.items()]
        self._jobs = [*pumps, asyncio.create_task(self._wait(process, pumps))]

    async def _pump(self, name: str, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._keep(name, data)
                async with self.changed:
                    await self.changed.wait_for(lambda: self._may_write(name))

    def _may_write(self, name: str) -> bool:
        return self.spec.detached or self.written[name] - self.taken[name] < AHEAD

    async def _keep(self, name: str, data: bytes) -> None:
        async with self.changed:
            self.outputs.append(Output(name, self.written[name], data))
            self.written[name] += len(data)
            self.changed.notify_all()

    async def _wait(self, process: asyncio.subprocess.Process, pumps: list[asyncio.Task[None]]) -> None:
        """The end of the command ends its process group, though a survivor in its own session may keep a pipe open."""
        timed_out = False
        try:
            code = await asyncio.wait_for(wait_for_exit(process), self.spec.timeout)
        except TimeoutError:
            timed_out = True
            self.signal(signal.SIGTERM)
            code = await wait_for_exit(process)
        self.signal(signal.SIGKILL)
        await self._drain(pumps)
        await self._finish(EXIT_TIMEOUT if timed_out else code if code >= 0 else 128 - code)

    async def _drain(self, pumps: list[asyncio.Task[None]]) -> None:
        """Wait for the rest of the output, as long as somebody is taking it."""
        while True:
            _, running = await asyncio.wait(pumps, timeout=0.3)
            if not running or self.attachment is None or self.written == self.taken:
                return

    async def _finish(self, code: int) -> None:
        async with self.changed:
            self.exit_code = code
            self.changed.notify_all()

    async def write_stdin(self, data: bytes) -> None:
        if self.terminal is not None:
            await asyncio.to_thread(os.write, self.terminal, data)
        elif self._stdin is not None and not self._stdin.is_closing():
            with contextlib.suppress(ConnectionError):
                self._stdin.write(data)
                await self._stdin.drain()

    async def close_stdin(self) -> None:
        if self.terminal is not None:
            os.write(self.terminal, END_OF_INPUT)
        elif self._stdin is not None:
            self._stdin.close()

    def signal(self, number: int) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def set_size(self, rows: int, cols: int, *, terminal: int | None = None) -> None:
        target = self.terminal if terminal is None else terminal
        if target is not None:
            fcntl.ioctl(target, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    async def end(self) -> None:
        """Kill the process and let go of everything."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await wait_for_exit(self.process)
            self.process._transport.close()  # type: ignore[attr-defined]
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None


async def wait_for_exit(process: asyncio.subprocess.Process) -> int:
    """The exit code, at the process's end: Process.wait() waits until nobody holds its pipes any more."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process.pid)
        loop.add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    while process.returncode is None:
        await asyncio.sleep(0.001)
    return process.returncode


class PlainStream:
    """One attachment: a `runta.engine.port.TaskStream`."""

    def __init__(self, task: PlainTask, stdout_offset: int | None = None, stderr_offset: int | None = None) -> None:
        self._task = task
        self._from = {"stdout": stdout_offset or 0, "stderr": stderr_offset or 0}
        self.closed = False
        task.attachment = self

    @property
    def task(self) -> TaskInfo:
        return self._task.info

    async def __aiter__(self) -> AsyncIterator[Output | Exit]:
        task, position = self._task, 0
        while True:
            async with task.changed:
                while position == len(task.outputs) and task.exit_code is None:
                    await task.changed.wait()
            while position < len(task.outputs):
                if piece := self._cut(task.outputs[position]):
                    yield piece
                await self._take(task.outputs[position])
                position += 1
            if task.exit_code is not None:
                yield Exit(task.exit_code)
                return

    def _cut(self, output: Output) -> Output | None:
        skip = max(0, self._from[output.stream] - output.offset)
        data = output.data[skip:]
        return replace(output, offset=output.offset + skip, data=data) if data else None

    async def _take(self, output: Output) -> None:
        async with self._task.changed:
            self._task.taken[output.stream] = max(self._task.taken[output.stream], output.offset + len(output.data))
            self._task.changed.notify_all()

    async def write_stdin(self, data: bytes) -> None:
        await self._task.write_stdin(data)

    async def close_stdin(self) -> None:
        await self._task.close_stdin()

    async def signal(self, number: int) -> None:
        self._task.signal(number)

    async def resize(self, rows: int, cols: int) -> None:
        self._task.set_size(rows, cols)

    async def aclose(self) -> None:
        self.closed = True
        if self._task.attachment is self:
            self._task.attachment = None
