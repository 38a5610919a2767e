"""The life of runtimes: create, restore, stop, start, pause, resume, delete, and an end nobody asked for."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, replace

from runta.engine.box import Box
from runta.engine.core import Audience, Core, log
from runta.engine.limits import check_resources, patch_resources, require_room, translating
from runta.engine.steps import step
from runta.engine.stillness import freeze, thaw
from runta.engine.tasks import Tasks
from runta.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ServiceError
from runta.kernel.process import ProcessId, boot_id, is_alive, wait_gone
from runta.models import (
    LIVE,
    Checkpoint,
    CheckpointKind,
    CreateRuntime,
    PatchRuntime,
    Resources,
    Runtime,
    RuntimeSpec,
    RuntimeStatus,
    new_id,
    now,
)
from runta.rules import check_env, check_name, require_revision

STOP_GRACE = 10.0
_LOOK_AGAIN = 0.005


class Runtimes:
    """Changes of runtimes' states. Each holds the runtime's lock."""

    def __init__(self, core: Core, tasks: Tasks) -> None:
        self._core = core
        self._tasks = tasks

    # ---- create and restore

    async def create(self, request: CreateRuntime, *, idempotency_key: str | None = None) -> Runtime:
        """A new runtime, fresh or from a checkpoint."""
        core = self._core
        if idempotency_key and (known := core.database.find_by_key(idempotency_key)):
            return await self._await_creation(known)
        checkpoint = self._core.find_ready(request.checkpoint) if request.checkpoint else None
        runtime = self._compose(request, checkpoint)
        require_room(core.layout.state_dir)
        try:
            core.database.add_runtime(runtime, idempotency_key)
        except AlreadyExists:
            if idempotency_key and (known := core.database.find_by_key(idempotency_key)):
                return await self._await_creation(known)
            raise
        kind = "runtime.restore" if checkpoint else "runtime.create"
        return await core.answer(
            lambda audience: self._settle(runtime, checkpoint, audience, kind, lazy=request.lazy),
            name=f"create {runtime.name}",
            meanwhile=lambda: core.find_runtime(runtime.id),
        )

    async def _await_creation(self, runtime: Runtime) -> Runtime:
        """What the first request with the same key made, once that one is through."""
        core = self._core
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(core.answer_after):
                while core.find_runtime(runtime.id).status is RuntimeStatus.CREATING:
                    async with core.locks[runtime.id]:
                        await asyncio.sleep(_LOOK_AGAIN)  # the lock is free until the creation's own job has begun
        return core.find_runtime(runtime.id)

    def _compose(self, request: CreateRuntime, checkpoint: Checkpoint | None) -> Runtime:
        runtime_id = new_id()
        name = check_name(request.name, "runtime") if request.name else f"runtime-{secrets.token_hex(4)}"
        moment = now()
        return Runtime(
            id=runtime_id,
            name=name,
            status=RuntimeStatus.CREATING,
            desired_status=RuntimeStatus.RUNNING,
            spec=self._compose_spec(request, checkpoint),
            created_at=moment,
            updated_at=moment,
            parent_checkpoint=checkpoint.id if checkpoint else None,
            generation=checkpoint.generation + 1 if checkpoint else 0,
            ingress=request.ingress,
            egress=request.egress,
            idle=request.idle,
        )

    def _compose_spec(self, request: CreateRuntime, checkpoint: Checkpoint | None) -> RuntimeSpec:
        env = dict(check_env(request.env))
        if checkpoint is None:
            image = self._core.images.get(request.image)
            return RuntimeSpec(
                image=image.id,
                image_name=image.name,
                resources=check_resources(request.resources or Resources()),
                ids=self._core.ids,
                init=self._core.init_digest,
                env={**image.env, **env},
            )
        if request.resources is not None and checkpoint.kind is CheckpointKind.FULL:
            raise InvalidArgument(
                "a full checkpoint keeps its CPUs and memory",
                cause="its programs have seen them",
                hint="restore it without resources; a cold checkpoint takes new ones",
            )
        resources = check_resources(request.resources) if request.resources else checkpoint.spec.resources
        return replace(checkpoint.spec, resources=resources, env={**checkpoint.spec.env, **env})

    async def _settle(
        self, runtime: Runtime, checkpoint: Checkpoint | None, audience: Audience, kind: str, *, lazy: bool
    ) -> Runtime:
        """A creation to its end. A failure that the caller hears leaves no record; another becomes the state."""
        core = self._core
        details = {"image": runtime.spec.image_name} if checkpoint is None else {"checkpoint": checkpoint.name}
        with core.journal.recording(kind, runtime, **details):
            try:
                return await self.bring_up(runtime, lambda: self.start_processes(runtime, checkpoint, lazy=lazy))
            except BaseException as error:
                if audience.present:
                    core.database.remove_runtime(runtime.id)
                    core.locks.pop(runtime.id, None)
                    await core.sweep_layers()
                else:
                    self._record_failure(runtime, error)
                raise

    def _record_failure(self, runtime: Runtime, error: BaseException) -> None:
        code = error.code if isinstance(error, ServiceError) else "internal"
        self._core.move(runtime, RuntimeStatus.ERROR, error_code=code, error_message=str(error)[:4096])

    async def bring_up(self, runtime: Runtime, start: Callable[[], ProcessId]) -> Runtime:
        """Start a recorded runtime's processes and go live with it; a failure leaves nothing on the host."""
        with translating(f"runtime {runtime.name}"):
            async with self._core.locks[runtime.id]:
                async with self._core.turns:
                    process = await asyncio.to_thread(start)
                try:
                    return await self.go_live(runtime, process)
                except BaseException:
                    await asyncio.to_thread(self._core.sandboxes.destroy, runtime.id)
                    raise

    def start_processes(self, runtime: Runtime, checkpoint: Checkpoint | None, *, lazy: bool = False) -> ProcessId:
        """Boot a runtime, or restore it from a verified checkpoint. Blocking."""
        core = self._core
        if checkpoint is not None:
            with step("verify"):
                core.checkpoints.verify(checkpoint.id)
        if checkpoint is not None and checkpoint.kind is CheckpointKind.FULL:
            return core.sandboxes.restore(runtime, core.layout.checkpoint(checkpoint.id).dump, lazy=lazy)
        return core.sandboxes.boot(runtime)

    async def go_live(self, runtime: Runtime, process: ProcessId) -> Runtime:
        """From a running container to a runtime that accepts work."""
        box = Box(runtime.id, process, self._core.layout.runtime(runtime.id).socket)
        try:
            with step("guest init answers"):
                await box.guest.wait_ready()
            self._core.sandboxes.seal_run(runtime.id)
            box.idle_after = _idle_after(runtime)
            self._core.boxes[runtime.id] = box
            await self._tasks.adopt(box)
            live = self._core.move(
                runtime,
                RuntimeStatus.RUNNING,
                desired_status=RuntimeStatus.RUNNING,
                init_pid=process.pid,
                init_start=process.start,
                boot_id=boot_id(),
                error_code=None,
                error_message=None,
            )
            box.watch(lambda: self._report_end(box))
            return live
        except BaseException:
            self._core.boxes.pop(runtime.id, None)
            await box.close()
            raise

    async def adopt(self, runtime: Runtime) -> None:
        """Take over a live runtime after a restart of the service. Raises ServiceError if its init does not answer."""
        process = ProcessId(runtime.init_pid or 0, runtime.init_start or 0)
        box = Box(runtime.id, process, self._core.layout.runtime(runtime.id).socket)
        box.idle_after = _idle_after(runtime)
        self._core.sandboxes.pagers.adopt(runtime.id)
        if runtime.status is RuntimeStatus.RUNNING:
            await asyncio.to_thread(self._core.sandboxes.cgroups.thaw, runtime.id)
            await box.guest.wait_ready()
            self._core.boxes[runtime.id] = box
            await self._tasks.adopt(box)
        else:
            await asyncio.to_thread(self._core.sandboxes.cgroups.freeze, runtime.id)
            box.stay_still()
            self._core.boxes[runtime.id] = box
        box.watch(lambda: self._report_end(box))

    # ---- stop, start, pause, resume, delete

    async def stop(self, ref: str, *, expected_revision: int | None = None) -> Runtime:
        """TERM to every process, KILL after a grace; the disk stays."""
        return await self._act(ref, expected_revision, RuntimeStatus.SHUTDOWN, "runtime.stop", self._stop)

    async def start(self, ref: str, *, expected_revision: int | None = None) -> Runtime:
        """Boot a shut-down runtime from its disk; a paused or suspended one resumes."""
        return await self._act(ref, expected_revision, RuntimeStatus.RUNNING, "runtime.start", self._start)

    async def pause(self, ref: str, *, expected_revision: int | None = None) -> Runtime:
        """Freeze every process; memory and connections stay."""
        return await self._act(ref, expected_revision, RuntimeStatus.PAUSED, "runtime.pause", self._pause)

    async def resume(self, ref: str, *, expected_revision: int | None = None) -> Runtime:
        """Let a paused or suspended runtime go on."""
        return await self._act(ref, expected_revision, RuntimeStatus.RUNNING, "runtime.resume", self._resume)

    async def delete(self, ref: str, *, expected_revision: int | None = None) -> Runtime | None:
        """End the processes at once and remove the disk; its checkpoints stay. A runtime is returned while it lasts."""
        core, runtime = self._core, self._core.find_runtime(ref)
        wanted = RuntimeStatus.DELETING

        async def work(_: Audience) -> Runtime | None:
            with core.journal.recording("runtime.delete", runtime):
                async with self.changing(runtime.id, expected_revision) as found:
                    if found.status is not wanted:
                        found = core.move(found, wanted, desired_status=wanted)
                    await self.finish_delete(found)
            core.locks.pop(runtime.id, None)
            return None

        def meanwhile() -> Runtime | None:
            found = core.database.find_runtime(runtime.id)
            return replace(found, status=wanted, desired_status=wanted) if found else None

        return await core.answer(work, name=f"delete {runtime.name}", meanwhile=meanwhile)

    async def _act(
        self,
        ref: str,
        expected_revision: int | None,
        wanted: RuntimeStatus,
        kind: str,
        act: Callable[[Runtime], Awaitable[Runtime]],
    ) -> Runtime:
        """Change a runtime's state; where that takes long, the answer has the old state and the wanted one."""
        core, runtime = self._core, self._core.find_runtime(ref)

        async def work(_: Audience) -> Runtime:
            with core.journal.recording(kind, runtime):
                async with self.changing(runtime.id, expected_revision) as found:
                    return await act(found)

        return await core.answer(
            work,
            name=f"{kind} {runtime.name}",
            meanwhile=lambda: replace(core.find_runtime(runtime.id), desired_status=wanted),
        )

    async def _stop(self, runtime: Runtime) -> Runtime:
        if runtime.status is RuntimeStatus.SHUTDOWN:
            return runtime
        self._require(runtime, LIVE | {RuntimeStatus.CRASHED}, "be shut down")
        if runtime.status in (RuntimeStatus.PAUSED, RuntimeStatus.SUSPENDED):
            runtime = await thaw(self._core, runtime)
        await self.end_processes(runtime, gently=runtime.status is RuntimeStatus.RUNNING)
        return self._core.move(runtime, RuntimeStatus.SHUTDOWN, **_ended(runtime))

    async def end_processes(self, runtime: Runtime, *, gently: bool) -> None:
        box = self._core.boxes.pop(runtime.id, None)
        if box is not None:
            box.unwatch()
            if gently:
                with contextlib.suppress(ServiceError, OSError):
                    await box.guest.stop(STOP_GRACE)
                    await asyncio.to_thread(wait_gone, box.process, STOP_GRACE + 2)
            await box.close()
        await asyncio.to_thread(self._core.sandboxes.stop, runtime.id)
        if box is not None:
            self._core.sandboxes.reap(box.process)

    async def _start(self, runtime: Runtime) -> Runtime:
        if runtime.status is RuntimeStatus.RUNNING:
            return runtime
        if runtime.status in (RuntimeStatus.PAUSED, RuntimeStatus.SUSPENDED):
            return await thaw(self._core, runtime)
        self._require(runtime, {RuntimeStatus.SHUTDOWN, RuntimeStatus.CRASHED}, "be booted")
        fresh = replace(runtime, spec=replace(runtime.spec, init=self._core.init_digest), revision=runtime.revision + 1)
        async with self._core.turns:
            process = await asyncio.to_thread(self._core.sandboxes.boot, fresh)
        try:
            return await self.go_live(fresh, process)
        except BaseException:
            await asyncio.to_thread(self._core.sandboxes.stop, runtime.id)
            raise

    async def _pause(self, runtime: Runtime) -> Runtime:
        if runtime.status is RuntimeStatus.PAUSED:
            return runtime
        if runtime.status is RuntimeStatus.SUSPENDED:  # it stands still already; from now on no request wakes it
            return self._core.move(
                runtime,
                RuntimeStatus.PAUSED,
                desired_status=RuntimeStatus.PAUSED,
                revision=runtime.revision + 1,
            )
        return await freeze(self._core, runtime, RuntimeStatus.PAUSED)

    async def _resume(self, runtime: Runtime) -> Runtime:
        if runtime.status is RuntimeStatus.RUNNING:
            return runtime
        self._require(runtime, {RuntimeStatus.PAUSED, RuntimeStatus.SUSPENDED}, "be resumed")
        return await thaw(self._core, runtime)

    async def finish_delete(self, runtime: Runtime) -> None:
        """The effects of a delete; also what recovery does with one that was interrupted."""
        core = self._core
        await self.end_processes(runtime, gently=False)
        await asyncio.to_thread(core.sandboxes.destroy, runtime.id)
        orphans = [found for found in core.database.checkpoints() if found.source_id == runtime.id]
        core.database.save_checkpoints(replace(found, source_gone=True) for found in orphans)
        core.database.remove_runtime(runtime.id)
        await core.sweep_layers()
        log.info("runtime %s (%s): removed", runtime.name, runtime.id)

    async def patch(self, ref: str, changes: PatchRuntime, *, expected_revision: int | None = None) -> Runtime:
        """Change a runtime's properties; memory at once, where it runs."""
        core, runtime = self._core, self._core.find_runtime(ref)
        fields = [name for name, value in asdict(changes).items() if value is not None]

        async def work(_: Audience) -> Runtime:
            with core.journal.recording("runtime.patch", runtime, fields=fields):
                async with self.changing(runtime.id, expected_revision) as found:
                    return await self._patch(found, changes)

        return await core.answer(work, name=f"patch {runtime.name}", meanwhile=lambda: core.find_runtime(runtime.id))

    async def _patch(self, runtime: Runtime, changes: PatchRuntime) -> Runtime:
        resources = patch_resources(runtime, changes)
        env = runtime.spec.env if changes.env is None else dict(check_env(changes.env))
        changed = replace(
            runtime,
            name=check_name(changes.name, "runtime") if changes.name is not None else runtime.name,
            spec=replace(runtime.spec, resources=resources, env=env),
            ingress=runtime.ingress if changes.ingress is None else changes.ingress,
            egress=changes.egress or runtime.egress,
            idle=changes.idle or runtime.idle,
            revision=runtime.revision + 1,
        )
        if resources != runtime.spec.resources and runtime.status in LIVE:
            await asyncio.to_thread(self._core.sandboxes.cgroups.set_limits, runtime.id, resources)
        if box := self._core.boxes.get(runtime.id):
            box.idle_after = _idle_after(changed)
        return self._core.save(changed)

    # ---- an end nobody asked for

    def _report_end(self, box: Box) -> None:
        self._core.spawn(self._settle_end(box), name=f"end of {box.runtime_id}")

    async def _settle_end(self, box: Box) -> None:
        """The first process ended by itself: with 0 it was a shutdown from inside, else a crash."""
        async with self._core.locks[box.runtime_id]:
            if self._core.boxes.get(box.runtime_id) is not box:
                return
            runtime = self._core.find_runtime(box.runtime_id)
            code = self._core.sandboxes.reap(box.process)
            lost = self._core.sandboxes.pagers.find_loss(runtime.id)
            await self.end_processes(runtime, gently=False)
            status = RuntimeStatus.SHUTDOWN if code == 0 else RuntimeStatus.CRASHED
            cause = None if code == 0 else lost or f"the guest init ended (status {code or 'unknown'})"
            with self._core.journal.recording(f"runtime.{status}", runtime, caller=None, cause=cause):
                self._core.move(runtime, status, error_message=cause, **_ended(runtime))

    # ---- helpers

    @contextlib.asynccontextmanager
    async def changing(self, ref: str, expected_revision: int | None) -> AsyncIterator[Runtime]:
        """Hold a runtime's lock, with its record as it is under the lock."""
        runtime_id = self._core.find_runtime(ref).id
        async with self._core.locks[runtime_id]:
            runtime = self._core.find_runtime(runtime_id)
            require_revision(runtime, expected_revision)
            yield runtime

    def _require(self, runtime: Runtime, allowed: set[RuntimeStatus] | frozenset[RuntimeStatus], what: str) -> None:
        if runtime.status not in allowed:
            raise FailedPrecondition(f"runtime {runtime.name} can't {what}", cause=f"it is {runtime.status}")


def is_adoptable(runtime: Runtime) -> bool:
    """Whether a recorded runtime's first process still runs."""
    if runtime.init_pid is None or runtime.init_start is None or runtime.boot_id != boot_id():
        return False
    return is_alive(ProcessId(runtime.init_pid, runtime.init_start))


def _idle_after(runtime: Runtime) -> float | None:
    """Seconds of idleness its policy allows; None: it may idle for ever."""
    return None if runtime.idle.mode == "disabled" else runtime.idle.suspend_after_secs


def _ended(runtime: Runtime) -> dict[str, object]:
    return {
        "desired_status": RuntimeStatus.SHUTDOWN,
        "init_pid": None,
        "init_start": None,
        "boot_id": None,
        "revision": runtime.revision + 1,
    }
