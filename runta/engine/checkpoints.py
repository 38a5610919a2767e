"""Taking checkpoints and deleting them."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from pathlib import Path

from runta.engine.core import Audience, Core, log
from runta.engine.limits import require_room, translating
from runta.engine.sandbox import Dumped
from runta.engine.steps import step
from runta.errors import FailedPrecondition, ServiceError
from runta.models import LIVE, Checkpoint, CheckpointKind, CheckpointState, Runtime, RuntimeStatus, new_id, now
from runta.rules import check_name
from runta.store.capture import Capture


class CheckpointMaker:
    """A checkpoint is all or nothing: a failure at any step leaves the runtime as it was, and nothing behind."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def create(self, ref: str, *, name: str | None, kind: CheckpointKind) -> Checkpoint:
        """Capture a runtime; the answer comes with the result, or as `creating` when that takes long.

        A failure that the caller hears leaves no record; one that nobody hears becomes the checkpoint's state.
        """
        core = self._core
        runtime = core.find_runtime(ref)
        require_kind(runtime, kind)
        require_room(core.layout.state_dir, core.sandboxes.cgroups.memory_bytes(runtime.id))
        with translating("the checkpoint"):
            async with core.shortened(runtime.spec.layers) as layers:
                checkpoint = _compose(runtime, name, kind, layers)
                core.database.add_checkpoint(checkpoint)
        return await core.answer(
            lambda audience: self._settle(runtime, checkpoint, audience),
            name=f"checkpoint {checkpoint.name}",
            meanwhile=lambda: core.find_checkpoint(checkpoint.id),
        )

    async def _settle(self, runtime: Runtime, checkpoint: Checkpoint, audience: Audience) -> Checkpoint:
        core = self._core
        details = {"checkpoint": checkpoint.name, "checkpoint_id": checkpoint.id, "kind": checkpoint.kind}
        with core.journal.recording("checkpoint.create", runtime, **details) as note:
            try:
                made = await self._make(runtime, checkpoint)
                note.details.update(pause_ms=made.pause_ms, size_bytes=made.size_bytes)
                return made
            except BaseException as error:
                if audience.present:
                    core.database.remove_checkpoint(checkpoint.id)
                else:
                    self._record_failure(checkpoint, error)
                raise

    def _record_failure(self, checkpoint: Checkpoint, error: BaseException) -> None:
        code = error.code if isinstance(error, ServiceError) else "internal"
        failed = replace(checkpoint, state=CheckpointState.FAILED, error_code=code, error_message=str(error)[:4096])
        self._core.database.save_checkpoints([failed])

    async def _make(self, source: Runtime, checkpoint: Checkpoint) -> Checkpoint:
        """`source`: as it was when the record was composed."""
        core = self._core
        with translating(f"checkpoint {checkpoint.name}"):
            async with core.staged() as staged:
                async with core.locks[source.id]:
                    runtime = core.find_runtime(source.id)
                    require_kind(runtime, checkpoint.kind)
                    require_same(runtime, source)
                    capture, dumped = await capture_runtime(core, runtime, checkpoint.kind, staged)
                made = await self._seal(staged, checkpoint, dumped)
                await asyncio.to_thread(core.sandboxes.remember_capture, source.id, capture, made.spec.layers[0])
        core.database.save_checkpoints([made])
        log.info("checkpoint %s (%s) of %s: ready, pause %s ms", made.name, made.id, made.source_name, made.pause_ms)
        return made

    async def _seal(self, staged: Path, checkpoint: Checkpoint, dumped: Dumped | None) -> Checkpoint:
        core = self._core
        made = replace(checkpoint, state=CheckpointState.READY)
        if dumped is not None:
            made = replace(made, memory_bytes=dumped.memory_bytes, pause_ms=dumped.pause_ms, processes=dumped.processes)
            with step("zero pages"):
                await asyncio.to_thread(core.sandboxes.dumps.settle, staged)
        with step("seal"):
            return await asyncio.to_thread(core.checkpoints.seal, staged, made, facts=core.facts)

    async def delete(self, ref: str) -> None:
        """Remove a checkpoint. What was restored from it goes on: its layers stay as long as something needs them."""
        core = self._core
        checkpoint = core.find_checkpoint(ref)
        if checkpoint.state is CheckpointState.CREATING:
            raise FailedPrecondition(f"checkpoint {checkpoint.name} is being made", hint="wait until it is ready")
        with core.journal.recording("checkpoint.delete", checkpoint, checkpoint=checkpoint.name):
            await asyncio.to_thread(core.checkpoints.remove, checkpoint.id)
            core.database.remove_checkpoint(checkpoint.id)
            await core.sweep_layers()
        log.info("checkpoint %s (%s): removed", checkpoint.name, checkpoint.id)


async def capture_runtime(
    core: Core, runtime: Runtime, kind: CheckpointKind, staged: Path
) -> tuple[Capture, Dumped | None]:
    """Capture a runtime into `staged`; the caller holds its lock. Most of its files are copied while it still runs, and
    no turn is taken for that."""
    if kind is CheckpointKind.COLD:
        async with core.turns:
            return await asyncio.to_thread(core.sandboxes.capture_disk, runtime, staged), None
    capture = await asyncio.to_thread(core.sandboxes.begin_capture, runtime, staged)
    if runtime.status is not RuntimeStatus.RUNNING:
        async with core.turns:
            return capture, await asyncio.to_thread(core.sandboxes.dump, runtime, staged, capture, frozen=True)
    box = core.box(runtime)
    with step("copy before the freeze"):
        await asyncio.to_thread(capture.prepare)
    async with core.turns:
        with step("quiesce"):
            await box.hold_still()
        try:
            return capture, await asyncio.to_thread(core.sandboxes.dump, runtime, staged, capture, frozen=False)
        finally:
            box.let_go()


def require_same(runtime: Runtime, before: Runtime) -> None:
    """Raise FailedPrecondition if a runtime has another disk than when its layers were read: it was rolled back, or
    booted anew."""
    if (runtime.spec.image, runtime.spec.layers, runtime.spec.init) != (
        before.spec.image,
        before.spec.layers,
        before.spec.init,
    ):
        raise FailedPrecondition(
            f"runtime {runtime.name} is not what it was", cause="it was rolled back meanwhile", hint="try again"
        )


def require_kind(runtime: Runtime, kind: CheckpointKind) -> None:
    """Raise FailedPrecondition where a runtime is in no state for this kind of checkpoint."""
    if kind is CheckpointKind.FULL and runtime.status not in LIVE:
        raise FailedPrecondition(
            f"runtime {runtime.name} has no processes to capture",
            cause=f"it is {runtime.status}",
            hint=f"`runta boot {runtime.name}`, or take a cold checkpoint of a shut-down runtime",
        )
    if kind is CheckpointKind.COLD and runtime.status is not RuntimeStatus.SHUTDOWN:
        raise FailedPrecondition(
            f"a cold checkpoint needs a shut-down runtime; {runtime.name} is {runtime.status}",
            hint=f"`runta shutdown {runtime.name}`, or take a full checkpoint",
        )


def _compose(runtime: Runtime, name: str | None, kind: CheckpointKind, layers: tuple[str, ...]) -> Checkpoint:
    """The record of a checkpoint in the making; its layer's id is in it from the start, so that no sweep removes it."""
    return Checkpoint(
        id=new_id(),
        name=check_name(name, "checkpoint") if name else f"{runtime.name[:54]}-{secrets.token_hex(4)}",
        state=CheckpointState.CREATING,
        kind=kind,
        spec=replace(runtime.spec, layers=(new_id(), *layers)),
        source_id=runtime.id,
        source_name=runtime.name,
        parent=runtime.parent_checkpoint,
        generation=runtime.generation,
        created_at=now(),
    )
