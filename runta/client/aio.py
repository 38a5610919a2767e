"""The asyncio SDK: `AsyncRunta` and its runtimes. The same operations as `runta.client.sync`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from runta.client import forks, runtimes
from runta.client.aio_parts import (
    AsyncCheckpointManager,
    AsyncEgressManager,
    AsyncFileManager,
    AsyncRuntimeCheckpointManager,
    AsyncSecretManager,
)
from runta.client.blocking import Driver
from runta.client.endpoint import Endpoint, resolve_endpoint
from runta.client.execution import Session
from runta.client.forks import Fork
from runta.client.nonblocking import AsyncDriver
from runta.client.options import check_client_options
from runta.client.steps import MAX_ATTEMPTS, Steps
from runta.client.types import (
    CommandResult,
    CreateRuntimeResources,
    EgressPolicy,
    IngressSpec,
    PatchRuntimeResources,
    RuntimeInfo,
    RuntimeStatus,
)

T = TypeVar("T")
FILE_WORKERS = 8
"""Threads that copy files, unless told otherwise."""


class AsyncRunta:
    """A client of one service, for one event loop. See `Runta` for its options; `file_io_workers` threads copy files.

    Raises ConfigError for settings that can't be used.

        async with AsyncRunta() as client:
            box = await client.runtimes.create("demo")
            print((await box.exec("uname -a")).stdout_text)
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        endpoint: str | None = None,
        config_path: str | Path | None = None,
        timeout: float = 30.0,
        retry_max_attempts: int = MAX_ATTEMPTS,
        connection_pool_maxsize: int = 250,
        file_io_workers: int | None = None,
    ) -> None:
        check_client_options(timeout, retry_max_attempts, connection_pool_maxsize)
        if file_io_workers is not None and file_io_workers < 1:
            raise ValueError("file_io_workers must be at least 1")
        place = resolve_endpoint(endpoint=endpoint, token=token, config_path=config_path)
        self.driver = AsyncDriver(place, timeout=timeout, attempts=retry_max_attempts, pool=connection_pool_maxsize)
        self._file_driver = Driver(place, timeout=timeout, attempts=retry_max_attempts, pool=connection_pool_maxsize)
        self._file_io_workers = file_io_workers or FILE_WORKERS
        self._workers: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def endpoint(self) -> Endpoint:
        """Where the service is."""
        return self.driver.endpoint

    @property
    def runtimes(self) -> AsyncRuntimeManager:
        return AsyncRuntimeManager(self)

    @property
    def checkpoints(self) -> AsyncCheckpointManager:
        return AsyncCheckpointManager(self)

    @property
    def secrets(self) -> AsyncSecretManager:
        return AsyncSecretManager(self)

    async def health(self) -> bool:
        """True, or an ApiError."""
        return await self.perform(runtimes.check_health())

    async def perform(self, steps: Steps[T]) -> T:
        """Run one operation of `runta.client` to its result."""
        return await self.driver.perform(steps)

    async def close(self) -> None:
        """Close the connections; copies that are under way are awaited."""
        workers, self._workers = self._workers, None
        if workers is not None:
            await asyncio.to_thread(workers.shutdown)
        self._file_driver.close()
        await self.driver.aclose()

    async def copy_files(self, work: Callable[..., None], *args: Any, **options: Any) -> None:
        """Run a copy of `runta.client.files` in a thread."""
        if self._workers is None:
            self._workers = ThreadPoolExecutor(self._file_io_workers, thread_name_prefix="runta-files")
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._workers, partial(work, self._file_driver, *args, **options))


class AsyncRuntimeManager:
    """Makes and finds runtimes."""

    def __init__(self, client: AsyncRunta) -> None:
        self._client = client

    async def list(self, status: str | Sequence[str] | None = None) -> list[AsyncRuntime]:
        """Runtimes in one of the given states; None: all. Raises ValueError for an unknown state."""
        infos = await self._client.perform(runtimes.list_runtimes(status))
        return [AsyncRuntime(self._client, info) for info in infos]

    async def create(
        self,
        name: str | None = None,
        *,
        checkpoint_id: str | None = None,
        vcpus: int = 1,
        memory_mib: int = 1024,
        memory_max_mib: int | None = None,
        resources: CreateRuntimeResources | Mapping[str, object] | None = None,
        ingress_specs: Sequence[IngressSpec | Mapping[str, object]] | None = None,
        egress_policy: EgressPolicy | None = None,
        idle_suspend_after_secs: int | None = None,
        wait: bool = True,
        timeout: float = 240.0,
        poll_interval: float = 0.5,
        image: str | None = None,
        environment: Mapping[str, str] | None = None,
        lazy: bool = False,
    ) -> AsyncRuntime:
        """Make a runtime, from a checkpoint if one is given (which then fixes its size), and wait until it runs.

        Raises ApiError where the service refuses, RuntimeError where it can't run, TimeoutError after `timeout`
        seconds.
        """
        body = runtimes.create_body(
            name,
            checkpoint_id=checkpoint_id,
            vcpus=vcpus,
            memory_mib=memory_mib,
            memory_max_mib=memory_max_mib,
            resources=resources,
            ingress_specs=ingress_specs,
            egress_policy=egress_policy,
            idle_suspend_after_secs=idle_suspend_after_secs,
            image=image,
            environment=environment,
            lazy=lazy,
        )
        runtime = AsyncRuntime(self._client, await self._client.perform(runtimes.create_runtime(body)))
        if wait:
            await runtime.wait_until_ready(timeout=timeout, poll_interval=poll_interval)
        return runtime

    async def get(self, id: str) -> AsyncRuntime:
        """By id or display name. Raises ApiError with status 404 if there is none."""
        return AsyncRuntime(self._client, await self._client.perform(runtimes.get_runtime(id)))


class AsyncRuntime:
    """One runtime, with what was last heard of it."""

    def __init__(self, client: AsyncRunta, info: RuntimeInfo) -> None:
        self._client = client
        self._info = info

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self._info.status} {self.id}>"

    @property
    def id(self) -> str:
        return self._info.id

    @property
    def name(self) -> str:
        return self._info.display_name

    @property
    def cached_info(self) -> RuntimeInfo:
        """What was last heard; `refresh_info` asks anew."""
        return self._info

    @property
    def files(self) -> AsyncFileManager:
        return AsyncFileManager(self)

    @property
    def checkpoints(self) -> AsyncRuntimeCheckpointManager:
        return AsyncRuntimeCheckpointManager(self)

    @property
    def egress(self) -> AsyncEgressManager:
        return AsyncEgressManager(self)

    async def refresh_info(self) -> RuntimeInfo:
        """Ask the service."""
        return await self._keep(runtimes.read_runtime(self.id))

    async def status(self) -> RuntimeStatus:
        """Ask the service for the state."""
        return (await self.refresh_info()).status

    heartbeat = status

    async def wait_until_ready(self, *, timeout: float = 240.0, poll_interval: float = 0.5) -> RuntimeInfo:
        """Return when it runs. Raises RuntimeError where it can't any more, TimeoutError after `timeout` seconds."""
        if self._info.status is RuntimeStatus.RUNNING:
            return self._info
        return await self._keep(runtimes.wait_for_runtime(self.id, timeout=timeout, poll_interval=poll_interval))

    async def boot(self, *, wait: bool = True, timeout: float = 240.0, poll_interval: float = 0.5) -> None:
        """Start a shut-down runtime anew on its disk."""
        await self._start("start", wait, timeout, poll_interval)

    async def resume(self, *, wait: bool = True, timeout: float = 240.0, poll_interval: float = 0.5) -> None:
        """Let a paused runtime go on."""
        await self._start("resume", wait, timeout, poll_interval)

    async def pause(self) -> None:
        """Freeze its processes; memory is kept."""
        await self._keep(runtimes.change_runtime(self.id, "pause"))

    async def shutdown(self) -> None:
        """End its processes; the disk is kept."""
        await self._keep(runtimes.change_runtime(self.id, "stop"))

    async def delete(self) -> None:
        """Remove it, with its disk. Its checkpoints stay; one that is already gone is no error."""
        await self._client.perform(runtimes.delete_runtime(self.id))

    async def update_resources(self, resources: PatchRuntimeResources | Mapping[str, object]) -> RuntimeInfo:
        """Change its resources while it runs."""
        return await self._keep(runtimes.patch_runtime(self.id, runtimes.resources_json(resources)))

    async def resize_memory(self, new_memory_mib: int) -> RuntimeInfo:
        """Set the memory's request and limit alike, in MiB."""
        return await self._keep(runtimes.patch_runtime(self.id, runtimes.memory_json(new_memory_mib)))

    async def exec(
        self,
        command: str | Sequence[str],
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        cwd: str | None = None,
        max_output_bytes: int | None = None,
    ) -> CommandResult:
        """Run a command to its end: a string in `sh -lc`, a sequence as it is.

        `max_output_bytes` are kept of each stream (default 4 MiB), the rest is dropped and flagged. After `timeout`
        seconds the command is ended and the exit code is 124. Raises ExecutionError where the result can't be had.
        """
        session = Session(
            self.id, command, timeout=timeout, env=env, stdin=stdin, cwd=cwd, max_output_bytes=max_output_bytes
        )
        return await self._client.driver.execute(session)

    def exec_detached(
        self,
        command: str | Sequence[str],
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        cwd: str | None = None,
        max_output_bytes: int | None = None,
    ) -> asyncio.Task[CommandResult]:
        """`exec` in a task of its own; cancelling it ends the command."""
        work = self.exec(command, timeout, env, stdin, cwd, max_output_bytes)
        return asyncio.create_task(work)

    async def restore(self, checkpoint_id: str, *, name: str | None = None, **create_options: Any) -> AsyncRuntime:
        """A new runtime from a checkpoint; this one stays as it is."""
        return await self._client.runtimes.create(name, checkpoint_id=checkpoint_id, **create_options)

    async def fork(self, count: int = 1, *, name: str | None = None) -> list[Fork[AsyncRuntime]]:
        """Capture this runtime once and make `count` new ones of it, all at once; it goes on.

        They are called `name` (one), or `name-1`, `name-2` … Each has its runtime or its own error; raises ApiError
        where the capture fails.
        """
        made = await self._client.perform(forks.fork_runtime(self.id, forks.name_forks(name, count)))
        return [Fork(AsyncRuntime(self._client, one.runtime) if one.runtime else None, one.error) for one in made]

    async def roll_back(self, checkpoint_id: str, *, timeout: float = 240.0, poll_interval: float = 0.5) -> None:
        """Put this runtime back to a checkpoint of its own lineage; its id and name stay, what it did since is lost."""
        await self._keep(forks.roll_back_runtime(self.id, checkpoint_id))
        await self.wait_until_ready(timeout=timeout, poll_interval=poll_interval)

    async def _start(self, verb: str, wait: bool, timeout: float, poll_interval: float) -> None:
        await self._keep(runtimes.change_runtime(self.id, verb))
        if wait:
            await self.wait_until_ready(timeout=timeout, poll_interval=poll_interval)

    async def _keep(self, steps: Steps[RuntimeInfo]) -> RuntimeInfo:
        self._info = await self._client.perform(steps)
        return self._info
