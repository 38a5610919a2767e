"""A plain object in the engine's place: records in memory, tasks as real local processes, files in a directory each."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import shutil
import tarfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from runta.engine.port import CALLER
from runta.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ServiceError
from runta.models import (
    DEFAULT_IMAGE,
    LIVE,
    Checkpoint,
    CheckpointKind,
    CheckpointState,
    CreateRuntime,
    Event,
    EventFilter,
    IdMap,
    Image,
    MemoryUse,
    PatchRuntime,
    Resources,
    Runtime,
    RuntimeSpec,
    RuntimeStatus,
    Secret,
    TaskInfo,
    TaskSpec,
    new_id,
    now,
)
from runta.rules import check_name, check_secret, require_revision, require_running, suggest

from .plain_tasks import PlainStream, PlainTask

CHUNK = 65536
T = TypeVar("T", Runtime, Checkpoint, Image, Secret)


@dataclass
class Box:
    """What stands behind one runtime."""

    runtime: Runtime
    root: Path
    tasks: dict[int, PlainTask] = field(default_factory=dict)


class PlainEngine:
    """A `runta.engine.port.Engine`. A task sees this machine's files, but begins in its runtime's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.boxes: dict[str, Box] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        self.images: dict[str, Image] = {}
        self.answered: dict[str, str] = {}
        """Idempotency keys, and the runtimes they made."""
        self.signals: list[tuple[int, int]] = []
        """Task and number, as `signal_task` was asked."""
        self.secrets: dict[str, Secret] = {}
        self.events: list[Event] = []
        self.callers: list[str | None] = []
        """Who asked for runtimes to be made."""
        self.slow = False
        """Deletes take longer than anybody waits."""
        self._numbers = itertools.count(1)
        self._keep_image(DEFAULT_IMAGE, "recipe")
        self.lazy: set[str] = set()
        """Names of runtimes whose restore was asked to be lazy."""

    async def aclose(self) -> None:
        """End every task."""
        for box in self.boxes.values():
            await self._end_tasks(box)

    # Runtimes

    async def create_runtime(self, request: CreateRuntime, *, idempotency_key: str | None = None) -> Runtime:
        self.callers.append(CALLER.get())
        if idempotency_key in self.answered:
            return self._box(self.answered[idempotency_key]).runtime
        name = check_name(request.name, "runtime") if request.name else f"box-{len(self.boxes) + 1}"
        if any(box.runtime.name == name for box in self.boxes.values()):
            raise AlreadyExists(f"there is already a runtime named {name!r}", hint="choose another name")
        source = self._find(self.checkpoints.values(), request.checkpoint, "checkpoint") if request.checkpoint else None
        runtime = self._restored(request, source, name) if source else self._fresh(request, name)
        root = self.directory / runtime.id
        if source:
            shutil.copytree(self.directory / source.id, root, symlinks=True)
        else:
            (root / "root").mkdir(parents=True)
        self.boxes[runtime.id] = Box(runtime, root)
        if request.lazy:
            self.lazy.add(name)
        if idempotency_key:
            self.answered[idempotency_key] = runtime.id
        return runtime

    def _fresh(self, request: CreateRuntime, name: str) -> Runtime:
        image = self._find(self.images.values(), request.image, "image")
        spec = RuntimeSpec(
            image=image.id,
            image_name=image.name,
            resources=request.resources or Resources(),
            ids=IdMap(start=1_000_000),
            init="0" * 64,
            env=dict(request.env),
        )
        return self._record(request, name, spec)

    def _restored(self, request: CreateRuntime, source: Checkpoint, name: str) -> Runtime:
        if source.state is not CheckpointState.READY:
            raise FailedPrecondition(f"checkpoint '{source.id}' is not ready (state: {source.state})")
        if request.resources and source.kind is CheckpointKind.FULL:
            raise InvalidArgument("a full checkpoint fixes the resources", hint="leave resources out")
        spec = replace(source.spec, resources=request.resources or source.spec.resources)
        return replace(self._record(request, name, spec), parent_checkpoint=source.id, generation=source.generation + 1)

    def _record(self, request: CreateRuntime, name: str, spec: RuntimeSpec) -> Runtime:
        moment = now()
        return Runtime(
            id=new_id(),
            name=name,
            status=RuntimeStatus.RUNNING,
            desired_status=RuntimeStatus.RUNNING,
            spec=spec,
            created_at=moment,
            updated_at=moment,
            ingress=request.ingress,
            egress=request.egress,
            idle=request.idle,
            init_pid=os.getpid(),
        )

    async def list_runtimes(self) -> Sequence[Runtime]:
        return [box.runtime for box in self.boxes.values()]

    async def measure_memory(self, ref: str) -> MemoryUse | None:
        live = (await self.get_runtime(ref)).status in LIVE
        return MemoryUse(usage_bytes=3 << 20, ksm_saved_bytes=1 << 20) if live else None

    async def get_runtime(self, ref: str) -> Runtime:
        return self._box(ref).runtime

    async def delete_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime | None:
        box = self._box(ref)
        require_revision(box.runtime, expected_revision)
        await self._end_tasks(box)
        del self.boxes[box.runtime.id]
        for checkpoint in self.checkpoints.values():
            if checkpoint.source_id == box.runtime.id:
                self.checkpoints[checkpoint.id] = replace(checkpoint, source_gone=True)
        shutil.rmtree(box.root)
        return replace(box.runtime, status=RuntimeStatus.DELETING) if self.slow else None

    async def start_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime:
        return self._move(ref, expected_revision, RuntimeStatus.RUNNING)

    async def stop_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime:
        runtime = self._move(ref, expected_revision, RuntimeStatus.SHUTDOWN)
        await self._end_tasks(self._box(runtime.id))
        return runtime

    async def pause_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime:
        return self._move(ref, expected_revision, RuntimeStatus.PAUSED, needs=RuntimeStatus.RUNNING)

    async def resume_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime:
        return self._move(ref, expected_revision, RuntimeStatus.RUNNING, needs=RuntimeStatus.PAUSED)

    async def patch_runtime(self, ref: str, changes: PatchRuntime, *, expected_revision: int | None = None) -> Runtime:
        runtime = self._box(ref).runtime
        require_revision(runtime, expected_revision)
        resources = replace(
            runtime.spec.resources,
            **_given(memory_mib=changes.memory_mib, memory_max_mib=changes.memory_max_mib, disk_gib=changes.disk_gib),
        )
        spec = replace(runtime.spec, resources=resources, **_given(env=changes.env))
        return self._update(
            runtime,
            spec=spec,
            **_given(name=changes.name, ingress=changes.ingress, egress=changes.egress, idle=changes.idle),
        )

    def _move(
        self, ref: str, expected: int | None, status: RuntimeStatus, *, needs: RuntimeStatus | None = None
    ) -> Runtime:
        runtime = self._box(ref).runtime
        require_revision(runtime, expected)
        if runtime.status is status:
            return runtime
        if needs and runtime.status is not needs:
            raise FailedPrecondition(f"runtime {runtime.name!r} is {runtime.status}", hint=f"it must be {needs}")
        return self._update(runtime, status=status, desired_status=status)

    def _update(self, runtime: Runtime, **changes: Any) -> Runtime:
        changed = replace(runtime, **changes, revision=runtime.revision + 1, updated_at=now())
        self.boxes[runtime.id].runtime = changed
        return changed

    def set_status(self, ref: str, status: RuntimeStatus) -> None:
        """What a test says the runtime's state is, past every rule."""
        box = self._box(ref)
        box.runtime = replace(box.runtime, status=status)

    # Tasks

    async def start_task(self, ref: str, spec: TaskSpec) -> PlainStream:
        box = self._running(ref)
        task = PlainTask(next(self._numbers), spec)
        box.tasks[task.number] = task
        stream = PlainStream(task)
        home = str(box.root / "root")
        path = {"PATH": os.defpath + ":/usr/bin:/bin", "HOME": home}
        await task.start({**path, **box.runtime.spec.env, **spec.env}, spec.cwd or home)
        return stream

    async def list_tasks(self, ref: str) -> Sequence[TaskInfo]:
        return [task.info for task in self._box(ref).tasks.values()]

    async def attach_task(
        self, ref: str, task_id: int, *, stdout_offset: int | None = None, stderr_offset: int | None = None
    ) -> PlainStream:
        return PlainStream(self._task(ref, task_id), stdout_offset, stderr_offset)

    async def signal_task(self, ref: str, task_id: int, number: int) -> None:
        self.signals.append((task_id, number))
        self._task(ref, task_id).signal(number)

    def _task(self, ref: str, task_id: int) -> PlainTask:
        tasks = self._box(ref).tasks
        if task_id not in tasks:
            raise NotFound(f"no task {task_id} in runtime {ref!r}", hint="list the tasks")
        return tasks[task_id]

    async def _end_tasks(self, box: Box) -> None:
        for task in box.tasks.values():
            await task.end()
        box.tasks.clear()

    # Files

    async def read_file(self, ref: str, path: str) -> AsyncIterator[bytes]:
        target = self._path(ref, path)
        if target.is_dir():
            raise InvalidArgument(f"{path} is a directory", hint="copy it as an archive")
        return _read_chunks(target, path)

    async def write_file(self, ref: str, path: str, content: AsyncIterator[bytes], *, mode: int = 0o644) -> None:
        target = self._path(ref, path)
        data = b"".join([chunk async for chunk in content])
        existed = target.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        if not existed:
            target.chmod(mode)

    async def read_archive(self, ref: str, path: str) -> AsyncIterator[bytes]:
        target = self._path(ref, path)
        if not target.exists():
            raise NotFound(f"no file or directory {path}")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(target, arcname=target.name)
        return _cut(buffer.getvalue())

    async def write_archive(self, ref: str, path: str, archive: AsyncIterator[bytes]) -> None:
        target = self._path(ref, path)
        data = b"".join([chunk async for chunk in archive])
        target.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as members:
                members.extractall(target, filter="data")
        except tarfile.TarError as err:
            raise InvalidArgument("this is not a tar archive that can be unpacked", cause=str(err)) from err

    def _path(self, ref: str, path: str) -> Path:
        if "\0" in path:
            raise InvalidArgument(f"{path[:80]!r} is not a path")
        root = self._running(ref).root
        return root / path.lstrip("/") if path.startswith("/") else root / "root" / path

    # Checkpoints

    async def create_checkpoint(self, ref: str, *, name: str | None, kind: CheckpointKind) -> Checkpoint:
        box = self._box(ref)
        needed = RuntimeStatus.SHUTDOWN if kind is CheckpointKind.COLD else RuntimeStatus.RUNNING
        if box.runtime.status is not needed:
            raise FailedPrecondition(
                f"runtime {box.runtime.name!r} is {box.runtime.status}", hint=f"it must be {needed}"
            )
        checkpoint = Checkpoint(
            id=new_id(),
            name=check_name(name, "checkpoint") if name else f"{box.runtime.name}-{len(self.checkpoints) + 1}",
            state=CheckpointState.READY,
            kind=kind,
            spec=box.runtime.spec,
            source_id=box.runtime.id,
            source_name=box.runtime.name,
            parent=box.runtime.parent_checkpoint,
            generation=box.runtime.generation,
            created_at=now(),
            size_bytes=4096,
            pause_ms=1.5,
        )
        shutil.copytree(box.root, self.directory / checkpoint.id, symlinks=True)
        self.checkpoints[checkpoint.id] = checkpoint
        return checkpoint

    async def fork_runtime(self, ref: str, names: Sequence[str | None]) -> Sequence[Runtime | ServiceError]:
        checkpoint = await self.create_checkpoint(ref, name=f"fork-{new_id()[-6:]}", kind=CheckpointKind.FULL)
        made: list[Runtime | ServiceError] = []
        for name in names:
            try:
                made.append(await self.create_runtime(CreateRuntime(name=name, checkpoint=checkpoint.id)))
            except ServiceError as err:
                made.append(err)
        await self.delete_checkpoint(checkpoint.id)
        return made

    async def roll_back_runtime(self, ref: str, checkpoint: str) -> Runtime:
        box = self._box(ref)
        found = self._find(self.checkpoints.values(), checkpoint, "checkpoint")
        if found.source_id != box.runtime.id:
            raise FailedPrecondition(f"checkpoint {found.name} is none of {box.runtime.name}")
        shutil.rmtree(box.root)
        shutil.copytree(self.directory / found.id, box.root, symlinks=True)
        box.runtime = replace(box.runtime, parent_checkpoint=found.id, revision=box.runtime.revision + 1)
        return box.runtime

    async def list_checkpoints(self) -> Sequence[Checkpoint]:
        return list(self.checkpoints.values())

    async def get_checkpoint(self, ref: str) -> Checkpoint:
        return self._find(self.checkpoints.values(), ref, "checkpoint")

    async def delete_checkpoint(self, ref: str) -> None:
        checkpoint = self._find(self.checkpoints.values(), ref, "checkpoint")
        del self.checkpoints[checkpoint.id]
        shutil.rmtree(self.directory / checkpoint.id)

    # Secrets and events

    async def put_secret(self, ref: str, value: str, *, cache_ttl_secs: int) -> Secret:
        check_secret(ref, value)
        known = next((one for one in self.secrets.values() if ref in (one.id, one.name)), None)
        moment = now()
        secret = Secret(
            id=known.id if known else new_id(),
            name=known.name if known else ref,
            cache_ttl_secs=cache_ttl_secs,
            preview="****",
            created_at=known.created_at if known else moment,
            updated_at=moment,
        )
        self.secrets[secret.id] = secret
        return secret

    async def list_secrets(self) -> Sequence[Secret]:
        return list(self.secrets.values())

    async def get_secret(self, ref: str) -> Secret:
        return self._find(self.secrets.values(), ref, "secret")

    async def delete_secret(self, ref: str) -> None:
        del self.secrets[self._find(self.secrets.values(), ref, "secret").id]

    async def list_events(self, wanted: EventFilter) -> Sequence[Event]:
        found = self.events if wanted.oldest_first else self.events[::-1]
        if wanted.after is not None:
            places = [place for place, event in enumerate(found) if event.id == wanted.after]
            if not places:
                raise InvalidArgument("page_token is not one of this log")
            found = found[places[0] + 1 :]
        chosen = [
            event
            for event in found
            if wanted.runtime in (None, event.runtime_id, event.runtime_name) and wanted.kind in (None, event.kind)
        ]
        return chosen[: wanted.limit]

    async def get_event(self, event_id: str) -> Event:
        found = next((event for event in self.events if event.id == event_id), None)
        if found is None:
            raise NotFound(f"no event {event_id!r}")
        return found

    # Images

    async def list_images(self) -> Sequence[Image]:
        return list(self.images.values())

    async def build_image(self, name: str) -> Image:
        return self._keep_image(name, "recipe")

    async def import_image(self, name: str, archive: AsyncIterator[bytes]) -> Image:
        size = sum([len(chunk) async for chunk in archive])
        return self._keep_image(check_name(name, "image"), "import", size)

    async def delete_image(self, ref: str) -> None:
        del self.images[self._find(self.images.values(), ref, "image").id]

    def _keep_image(self, name: str, source: str, size: int = 0) -> Image:
        image = Image(id=new_id(), name=name, created_at=now(), size_bytes=size, source=source)
        self.images[image.id] = image
        return image

    # Finding

    def _box(self, ref: str) -> Box:
        return self.boxes[self._find([box.runtime for box in self.boxes.values()], ref, "runtime").id]

    def _running(self, ref: str) -> Box:
        box = self._box(ref)
        require_running(box.runtime)
        return box

    def _find(self, things: Iterable[T], ref: str, what: str) -> T:
        known = list(things)
        found = next((thing for thing in known if ref in (thing.id, thing.name)), None)
        if found is None:
            raise NotFound(f"no {what} {ref!r}", hint=suggest(ref, [thing.name for thing in known]))
        return found


def _given(**changes: object) -> Mapping[str, Any]:
    return {name: value for name, value in changes.items() if value is not None}


async def _read_chunks(target: Path, name: str) -> AsyncIterator[bytes]:
    try:
        with target.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk
    except FileNotFoundError:
        raise NotFound(f"no file {name}") from None


async def _cut(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]
