"""The idle policy: who does nothing for so long is suspended; who may wake up does so at the next request.

Activity is an exec, a file, an attached stream. What a runtime's own programs do in the background is none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from runta.engine.box import Box
from runta.engine.core import Core, log
from runta.engine.stillness import freeze, thaw
from runta.errors import ServiceError
from runta.models import Runtime, RuntimeStatus
from runta.rules import wakes_on_request

LOOK_SECONDS = 0.5


class Idle:
    """Suspends and wakes runtimes."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look after idle runtimes from now on."""
        self._watch = asyncio.create_task(self._look(), name="idle policy")

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def using(self, ref: str) -> AsyncIterator[tuple[Runtime, Box]]:
        """A runtime that works for a request, awake as long as the block lasts.

        Raises FailedPrecondition where it does not run and may not wake up.
        """
        runtime = self._core.find_runtime(ref)
        if wakes_on_request(runtime):
            runtime = await self.wake(runtime.id)
        box = self._core.box(runtime)  # no await between the record and the use: a suspension looks at both
        with box.using():
            yield runtime, box

    async def wake(self, runtime_id: str) -> Runtime:
        """Let a suspended runtime go on, once."""
        async with self._core.locks[runtime_id]:
            runtime = self._core.find_runtime(runtime_id)
            if runtime.status is not RuntimeStatus.SUSPENDED:
                return runtime
            with self._core.journal.recording("runtime.wake", runtime):
                return await thaw(self._core, runtime)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for box in [box for box in self._core.boxes.values() if box.is_idle()]:
                try:
                    await self._suspend(box)
                except (ServiceError, OSError) as err:
                    box.touch()
                    log.warning("runtime %s could not be suspended: %s", box.runtime_id, err)

    async def _suspend(self, box: Box) -> None:
        """The record is written before the first effect: from then on a request wakes the runtime, or is refused."""
        core = self._core
        async with core.locks[box.runtime_id]:
            if core.boxes.get(box.runtime_id) is not box or not box.is_idle():
                return
            runtime = core.find_runtime(box.runtime_id)
            if runtime.status is not RuntimeStatus.RUNNING:
                return
            with core.journal.recording("runtime.suspend", runtime, caller=None):
                core.save(runtime, status=RuntimeStatus.SUSPENDED)
                try:
                    await freeze(core, runtime, RuntimeStatus.SUSPENDED)
                except BaseException:
                    core.save(runtime)
                    raise
