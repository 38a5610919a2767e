"""Fork and rollback: restores without a new checkpoint, and in the place of what there was."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runta.engine.checkpoints import capture_runtime, require_kind, require_same
from runta.engine.core import Audience, Core, log
from runta.engine.limits import require_room, translating
from runta.engine.runtimes import Runtimes
from runta.errors import FailedPrecondition, InternalError, ServiceError
from runta.models import LIVE, Checkpoint, CheckpointKind, Runtime, RuntimeStatus, new_id, now
from runta.rules import check_name
from runta.store.checkpoints import admit_restorers

Result = Runtime | ServiceError


class Forks:
    """New runtimes of a live one, and old states of it."""

    def __init__(self, core: Core, runtimes: Runtimes) -> None:
        self._core = core
        self._runtimes = runtimes

    # ---- fork

    async def fork(self, ref: str, names: Sequence[str | None]) -> list[Result]:
        """Capture once, restore for each name. The dump lasts as long as the restores; the forks keep the layer."""
        core, source = self._core, self._core.find_runtime(ref)
        require_kind(source, CheckpointKind.FULL)
        require_room(core.layout.state_dir, core.sandboxes.cgroups.memory_bytes(source.id))
        # A job of its own: the end of a request, or of the service, must not part it from the threads it started.
        return await asyncio.shield(core.spawn(self._fork(source, names), name=f"fork of {source.name}"))

    async def _fork(self, source: Runtime, names: Sequence[str | None]) -> list[Result]:
        core, layer = self._core, new_id()
        with core.journal.recording("runtime.fork", source, count=len(names)) as note, translating("the fork"):
            async with core.shortened(source.spec.layers) as below:
                begun = [self._record(source, (layer, *below), name) for name in names]
            try:
                async with core.staged() as staged:
                    note.details["pause_ms"] = await self._capture(source, layer, staged)
                    dump = staged / "checkpoint" / "dump"
                    made = await asyncio.gather(*(self._restore(one, dump) for one in begun))
            except BaseException:
                self._forget(begun)
                raise
            if any(isinstance(one, ServiceError) for one in made):
                await core.sweep_layers()
            note.details["made"] = sum(isinstance(one, Runtime) for one in made)
        return list(made)

    def _record(self, source: Runtime, layers: tuple[str, ...], name: str | None) -> Result:
        """Write down a fork before its first effect; its layer is in it, so that no sweep removes that."""
        moment = now()
        try:
            fork = replace(
                source,
                id=new_id(),
                name=check_name(name, "runtime") if name else f"{source.name[:54]}-{secrets.token_hex(4)}",
                status=RuntimeStatus.CREATING,
                desired_status=RuntimeStatus.RUNNING,
                spec=replace(source.spec, layers=layers),
                revision=1,
                created_at=moment,
                updated_at=moment,
                parent_checkpoint=None,
                parent_runtime=source.id,
                generation=source.generation + 1,
                ingress=(),
                init_pid=None,
                init_start=None,
            )
            self._core.database.add_runtime(fork, None)
        except ServiceError as err:
            return err
        return fork

    async def _capture(self, before: Runtime, layer: str, staged: Path) -> float | None:
        core = self._core
        async with core.locks[before.id]:
            source = core.find_runtime(before.id)
            require_kind(source, CheckpointKind.FULL)
            require_same(source, before)
            capture, dumped = await capture_runtime(core, source, CheckpointKind.FULL, staged)
        await asyncio.to_thread(core.layers.keep, staged / "layer", layer)
        await asyncio.to_thread(admit_restorers, staged / "checkpoint" / "dump")
        await asyncio.to_thread(core.sandboxes.remember_capture, source.id, capture, layer)
        return dumped.pause_ms if dumped else None

    def _forget(self, begun: Sequence[Result]) -> None:
        """Drop the records of forks that did not come into being."""
        for one in begun:
            found = self._core.database.find_runtime(one.id) if isinstance(one, Runtime) else None
            if found is not None and found.status is RuntimeStatus.CREATING:
                self._core.database.remove_runtime(found.id)

    async def _restore(self, fork: Result, dump: Path) -> Result:
        if not isinstance(fork, Runtime):
            return fork
        try:
            return await self._runtimes.bring_up(fork, lambda: self._core.sandboxes.restore(fork, dump))
        except Exception as err:  # noqa: BLE001 - whatever befalls one fork is its own result, and no end of the others
            self._core.database.remove_runtime(fork.id)
            self._core.locks.pop(fork.id, None)
            if isinstance(err, ServiceError):
                return err
            log.exception("fork %s (%s)", fork.name, fork.id)
            return InternalError(f"fork {fork.name} failed", cause=str(err), hint="the service's log tells more")

    # ---- rollback

    async def roll_back(self, ref: str, checkpoint_ref: str) -> Runtime:
        """Put a runtime back. Whatever fails before its processes are ended leaves it as it was; later it is shut down,
        with the disk it had."""
        core, runtime = self._core, self._core.find_runtime(ref)
        checkpoint = core.find_ready(checkpoint_ref)
        self._require_lineage(runtime, checkpoint)

        async def work(_: Audience) -> Runtime:
            with (
                core.journal.recording("runtime.rollback", runtime, checkpoint=checkpoint.name),
                core.pinning(checkpoint.spec.layers),
            ):
                core.find_ready(checkpoint.id)
                await asyncio.to_thread(core.checkpoints.verify, checkpoint.id)
                async with self._runtimes.changing(runtime.id, None) as found:
                    return await self._replace(found, checkpoint)

        return await core.answer(
            work, name=f"rollback of {runtime.name}", meanwhile=lambda: core.find_runtime(runtime.id)
        )

    def _require_lineage(self, runtime: Runtime, checkpoint: Checkpoint) -> None:
        """A checkpoint of the runtime itself, or one it descends from."""
        core, ancestor = self._core, runtime.parent_checkpoint
        while ancestor is not None and ancestor != checkpoint.id:
            found = core.database.find_checkpoint(ancestor)
            ancestor = found.parent if found else None
        if ancestor is None and checkpoint.source_id != runtime.id:
            raise FailedPrecondition(
                f"runtime {runtime.name} can't be rolled back to checkpoint {checkpoint.name}",
                cause=f"that was made of {checkpoint.source_name}, and {runtime.name} does not come from it",
                hint=f"`runta snapshot restore {checkpoint.name} NAME` makes a new runtime of it",
            )

    async def _replace(self, runtime: Runtime, checkpoint: Checkpoint) -> Runtime:
        core = self._core
        if runtime.status not in LIVE | {RuntimeStatus.SHUTDOWN, RuntimeStatus.CRASHED}:
            raise FailedPrecondition(f"runtime {runtime.name} can't be rolled back", cause=f"it is {runtime.status}")
        after = replace(
            runtime,
            status=RuntimeStatus.CREATING,
            spec=replace(checkpoint.spec, env=runtime.spec.env),
            parent_checkpoint=checkpoint.id,
            parent_runtime=None,
            generation=checkpoint.generation + 1,
            revision=runtime.revision + 1,
        )
        await self._runtimes.end_processes(runtime, gently=False)
        try:
            await asyncio.to_thread(core.sandboxes.set_aside, runtime)
            with translating(f"the rollback of {runtime.name}"):
                async with core.turns:
                    process = await asyncio.to_thread(self._runtimes.start_processes, after, checkpoint)
                live = await self._runtimes.go_live(after, process)
        except BaseException as error:
            self._record_failure(runtime, error)
            await asyncio.to_thread(core.sandboxes.put_back, runtime)
            raise
        try:
            await asyncio.to_thread(core.database.write_out)
            await asyncio.to_thread(core.sandboxes.drop_aside, runtime)
            await core.sweep_layers()
        except (ServiceError, OSError) as err:  # it is done; the next start of the service removes what is left
            log.warning("the old disk of runtime %s (%s) is still there: %s", runtime.name, runtime.id, err)
        return live

    def _record_failure(self, runtime: Runtime, error: BaseException) -> None:
        self._core.save(
            runtime,
            status=RuntimeStatus.SHUTDOWN,
            desired_status=RuntimeStatus.SHUTDOWN,
            error_message=f"a rollback failed: {error}"[:4096],
            init_pid=None,
            init_start=None,
        )
