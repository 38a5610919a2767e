"""The blocking SDK: `Runta` and its runtimes. Every method runs one operation of this package."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from runta.client import forks, runtimes
from runta.client.blocking import Driver
from runta.client.endpoint import Endpoint, resolve_endpoint
from runta.client.execution import Session
from runta.client.forks import Fork
from runta.client.options import check_client_options
from runta.client.steps import MAX_ATTEMPTS, Steps
from runta.client.sync_parts import (
    CheckpointManager,
    EgressManager,
    FileManager,
    RuntimeCheckpointManager,
    SecretManager,
)
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
BACKGROUND = 32
"""Commands of `exec_detached` that run at one time."""


class Runta:
    """A client of one service.

    Without an endpoint (argument, RUNTA_ENDPOINT or configuration file) it uses this host's service through its Unix
    socket and, as root, starts one where none runs. `timeout` is in seconds, for each request. Threads may
    share a client. Raises ConfigError for settings that can't be used.

        with Runta() as client:
            box = client.runtimes.create("demo")
            print(box.exec("uname -a").stdout_text)
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
    ) -> None:
        check_client_options(timeout, retry_max_attempts, connection_pool_maxsize)
        self.driver = Driver(
            resolve_endpoint(endpoint=endpoint, token=token, config_path=config_path),
            timeout=timeout,
            attempts=retry_max_attempts,
            pool=connection_pool_maxsize,
        )
        self._lock = threading.Lock()
        self._workers: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> Endpoint:
        """Where the service is."""
        return self.driver.endpoint

    @property
    def runtimes(self) -> RuntimeManager:
        return RuntimeManager(self)

    @property
    def checkpoints(self) -> CheckpointManager:
        return CheckpointManager(self)

    @property
    def secrets(self) -> SecretManager:
        return SecretManager(self)

    def health(self) -> bool:
        """True, or an ApiError."""
        return self.perform(runtimes.check_health())

    def perform(self, steps: Steps[T]) -> T:
        """Run one operation of `runta.client` to its result."""
        return self.driver.perform(steps)

    def close(self) -> None:
        """Close the connections; commands of `exec_detached` are awaited."""
        with self._lock:
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.shutdown()
        self.driver.close()

    def _background(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._workers is None:
                self._workers = ThreadPoolExecutor(BACKGROUND, thread_name_prefix="runta-exec")
            return self._workers


class RuntimeManager:
    """Makes and finds runtimes."""

    def __init__(self, client: Runta) -> None:
        self._client = client

    def list(self, status: str | Sequence[str] | None = None) -> list[Runtime]:
        """Runtimes in one of the given states; None: all. Raises ValueError for an unknown state."""
        return [Runtime(self._client, info) for info in self._client.perform(runtimes.list_runtimes(status))]

    def create(
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
    ) -> Runtime:
        """Make a runtime, from a checkpoint if one is given (which then fixes its size), and wait until it runs.

        `lazy`: a restored one runs before its memory is in (only this host's own service does that).
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
        runtime = Runtime(self._client, self._client.perform(runtimes.create_runtime(body)))
        if wait:
            runtime.wait_until_ready(timeout=timeout, poll_interval=poll_interval)
        return runtime

    def get(self, id: str) -> Runtime:
        """By id or display name. Raises ApiError with status 404 if there is none."""
        return Runtime(self._client, self._client.perform(runtimes.get_runtime(id)))


class Runtime:
    """One runtime, with what was last heard of it."""

    def __init__(self, client: Runta, info: RuntimeInfo) -> None:
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
    def files(self) -> FileManager:
        return FileManager(self)

    @property
    def checkpoints(self) -> RuntimeCheckpointManager:
        return RuntimeCheckpointManager(self)

    @property
    def egress(self) -> EgressManager:
        return EgressManager(self)

    def refresh_info(self) -> RuntimeInfo:
        """Ask the service."""
        return self._keep(runtimes.read_runtime(self.id))

    def status(self) -> RuntimeStatus:
        """Ask the service for the state."""
        return self.refresh_info().status

    heartbeat = status

    def wait_until_ready(self, *, timeout: float = 240.0, poll_interval: float = 0.5) -> RuntimeInfo:
        """Return when it runs. Raises RuntimeError where it can't any more, TimeoutError after `timeout` seconds."""
        if self._info.status is RuntimeStatus.RUNNING:
            return self._info
        return self._keep(runtimes.wait_for_runtime(self.id, timeout=timeout, poll_interval=poll_interval))

    def boot(self, *, wait: bool = True, timeout: float = 240.0, poll_interval: float = 0.5) -> None:
        """Start a shut-down runtime anew on its disk."""
        self._start("start", wait, timeout, poll_interval)

    def resume(self, *, wait: bool = True, timeout: float = 240.0, poll_interval: float = 0.5) -> None:
        """Let a paused runtime go on."""
        self._start("resume", wait, timeout, poll_interval)

    def pause(self) -> None:
        """Freeze its processes; memory is kept."""
        self._keep(runtimes.change_runtime(self.id, "pause"))

    def shutdown(self) -> None:
        """End its processes; the disk is kept."""
        self._keep(runtimes.change_runtime(self.id, "stop"))

    def delete(self) -> None:
        """Remove it, with its disk. Its checkpoints stay; one that is already gone is no error."""
        self._client.perform(runtimes.delete_runtime(self.id))

    def update_resources(self, resources: PatchRuntimeResources | Mapping[str, object]) -> RuntimeInfo:
        """Change its resources while it runs."""
        return self._keep(runtimes.patch_runtime(self.id, runtimes.resources_json(resources)))

    def resize_memory(self, new_memory_mib: int) -> RuntimeInfo:
        """Set the memory's request and limit alike, in MiB."""
        return self._keep(runtimes.patch_runtime(self.id, runtimes.memory_json(new_memory_mib)))

    def exec(
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
        return self._client.driver.execute(session)

    def exec_detached(self, command: str | Sequence[str], **options: Any) -> Future[CommandResult]:
        """`exec` in a thread of the client."""
        return self._client._background().submit(self.exec, command, **options)

    def restore(self, checkpoint_id: str, *, name: str | None = None, **create_options: Any) -> Runtime:
        """A new runtime from a checkpoint; this one stays as it is."""
        return self._client.runtimes.create(name, checkpoint_id=checkpoint_id, **create_options)

    def fork(self, count: int = 1, *, name: str | None = None) -> list[Fork[Runtime]]:
        """Capture this runtime once and make `count` new ones of it, all at once; it goes on.

        They are called `name` (one), or `name-1`, `name-2` … Each has its runtime or its own error; raises ApiError
        where the capture fails.
        """
        made = self._client.perform(forks.fork_runtime(self.id, forks.name_forks(name, count)))
        return [Fork(Runtime(self._client, one.runtime) if one.runtime else None, one.error) for one in made]

    def roll_back(self, checkpoint_id: str, *, timeout: float = 240.0, poll_interval: float = 0.5) -> None:
        """Put this runtime back to a checkpoint of its own lineage; its id and name stay, what it did since is lost."""
        self._keep(forks.roll_back_runtime(self.id, checkpoint_id))
        self.wait_until_ready(timeout=timeout, poll_interval=poll_interval)

    def _start(self, verb: str, wait: bool, timeout: float, poll_interval: float) -> None:
        self._keep(runtimes.change_runtime(self.id, verb))
        if wait:
            self.wait_until_ready(timeout=timeout, poll_interval=poll_interval)

    def _keep(self, steps: Steps[RuntimeInfo]) -> RuntimeInfo:
        self._info = self._client.perform(steps)
        return self._info
