"""After a stop, a crash or a reboot: what the records say and what the host shows are brought together again."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from runta.engine.core import Core, log
from runta.engine.runtimes import Runtimes, is_adoptable
from runta.errors import ServiceError
from runta.kernel.process import boot_id
from runta.models import LIVE, CheckpointState, Runtime, RuntimeStatus
from runta.store.staging import remove_tree, sweep


async def recover(core: Core, runtimes: Runtimes) -> None:
    """Adopt what lives, finish what was begun, remove what nobody knows. Runs once, before the first request."""
    await asyncio.to_thread(core.sandboxes.dumps.sweep, core.layout.staging)
    await asyncio.to_thread(sweep, core.layout.staging)
    for runtime in core.database.runtimes():
        try:
            await _settle(core, runtimes, runtime)
        except (ServiceError, OSError) as err:
            log.warning("runtime %s (%s) could not be recovered: %s", runtime.name, runtime.id, err)
    await asyncio.to_thread(_settle_rollbacks, core)
    _settle_checkpoints(core)
    await asyncio.to_thread(_remove_strays, core)
    await core.sweep_layers()


async def _settle(core: Core, runtimes: Runtimes, runtime: Runtime) -> None:
    """Bring one runtime's record and the host together."""
    if runtime.status is RuntimeStatus.DELETING:
        await runtimes.finish_delete(runtime)
    elif runtime.status is RuntimeStatus.CREATING:
        await asyncio.to_thread(core.sandboxes.destroy, runtime.id)
        reason = "the service ended while it was being created"
        core.move(runtime, RuntimeStatus.ERROR, error_code="internal", error_message=reason)
    elif runtime.status in LIVE and is_adoptable(runtime):
        await _adopt(core, runtimes, runtime)
    elif runtime.status in LIVE:
        await _record_end(core, runtime)
    elif runtime.status is not RuntimeStatus.ERROR:
        await asyncio.to_thread(core.sandboxes.stop, runtime.id)


async def _adopt(core: Core, runtimes: Runtimes, runtime: Runtime) -> None:
    try:
        await runtimes.adopt(runtime)
        log.info("runtime %s (%s): adopted", runtime.name, runtime.id)
    except ServiceError as err:
        log.warning("runtime %s (%s) does not answer: %s", runtime.name, runtime.id, err)
        await _record_end(core, runtime)


async def _record_end(core: Core, runtime: Runtime) -> None:
    """Its processes ended while no service was watching."""
    await asyncio.to_thread(core.sandboxes.stop, runtime.id)
    rebooted = runtime.boot_id != boot_id()
    status = RuntimeStatus.SHUTDOWN if rebooted else RuntimeStatus.CRASHED
    reason = "the host was rebooted" if rebooted else "its processes ended while the service was not running"
    core.move(
        runtime, status, desired_status=RuntimeStatus.SHUTDOWN, error_message=reason, init_pid=None, init_start=None
    )


def _settle_rollbacks(core: Core) -> None:
    """A rollback whose result was recorded is done; before that, the runtime gets back the disk it had."""
    for entry in core.layout.replaced.iterdir():
        runtime_id, _, revision = entry.name.partition("@")
        runtime = core.database.find_runtime(runtime_id)
        if runtime is None or str(runtime.revision) != revision:
            remove_tree(entry)
            continue
        try:
            core.sandboxes.put_back(runtime)
        except (ServiceError, OSError) as err:
            log.warning("runtime %s (%s) does not get back its disk: %s", runtime.name, runtime.id, err)
            continue
        reason = "the service ended during a rollback"
        core.save(runtime, status=RuntimeStatus.SHUTDOWN, error_message=reason, revision=runtime.revision + 1)


def _settle_checkpoints(core: Core) -> None:
    """A checkpoint in the making was lost with the service; one with a manifest and no record gets its record back."""
    complete = {checkpoint.id: checkpoint for checkpoint in core.checkpoints.complete()}
    known = {checkpoint.id: checkpoint for checkpoint in core.database.checkpoints()}
    for checkpoint in known.values():
        if checkpoint.id in complete and checkpoint.state is not CheckpointState.READY:
            core.database.save_checkpoints([complete[checkpoint.id]])
        elif checkpoint.id not in complete and checkpoint.state is not CheckpointState.FAILED:
            core.checkpoints.remove(checkpoint.id)
            core.database.remove_checkpoint(checkpoint.id)
    sources = {runtime.id for runtime in core.database.runtimes()}
    for checkpoint in complete.values():
        if checkpoint.id not in known:
            core.database.add_checkpoint(replace(checkpoint, source_gone=checkpoint.source_id not in sources))


def _remove_strays(core: Core) -> None:
    """Containers, cgroups and directories without a record. Only what lies below our own state directory is ours."""
    known = {runtime.id for runtime in core.database.runtimes()}
    ours = {entry.name for entry in core.layout.runtimes.iterdir()} | core.sandboxes.runc.known()
    for stray in ours - known:
        log.warning("removing what is left of the unknown runtime %s", stray)
        try:
            core.sandboxes.destroy(stray)
        except (ServiceError, OSError) as err:
            log.warning("it stays: %s", err)
    recorded = {checkpoint.id for checkpoint in core.database.checkpoints()}
    for entry in core.layout.checkpoints.iterdir():
        if entry.name not in recorded:
            remove_tree(entry)
    core.inits.sweep(core.needed_inits())
