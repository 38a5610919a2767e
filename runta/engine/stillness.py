"""A live runtime stands still, and goes on: the gates, the freezer and the record, in this order."""

from __future__ import annotations

import asyncio

from runta.engine.core import Core
from runta.errors import Unavailable
from runta.models import Runtime, RuntimeStatus


async def freeze(core: Core, runtime: Runtime, status: RuntimeStatus) -> Runtime:
    """Freeze a running runtime's processes; memory and connections stay. The caller holds its lock."""
    box = core.box(runtime)
    await box.hold_still()
    try:
        await asyncio.to_thread(core.sandboxes.cgroups.freeze, runtime.id)
    except BaseException:
        box.let_go()
        raise
    return core.move(runtime, status, desired_status=status, revision=runtime.revision + 1)


async def thaw(core: Core, runtime: Runtime) -> Runtime:
    """Let a paused or suspended runtime go on. The caller holds its lock. Raises Unavailable if it has no processes."""
    box = core.boxes.get(runtime.id)
    if box is None:
        raise Unavailable(f"runtime {runtime.name} has no processes", hint=f"`runta boot {runtime.name}`")
    await asyncio.to_thread(core.sandboxes.cgroups.thaw, runtime.id)
    box.let_go()
    box.touch()
    return core.move(
        runtime, RuntimeStatus.RUNNING, desired_status=RuntimeStatus.RUNNING, revision=runtime.revision + 1
    )
