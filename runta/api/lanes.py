"""Work that waits for a task must not stop the reading of its socket: a lane does it beside, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

Step = Callable[[], Awaitable[None]]


class Lane:
    """Steps done one after another; `put` waits while more than `capacity` lies undone. An error goes to `failed`."""

    def __init__(self, capacity: int, failed: asyncio.Future[None]) -> None:
        self._capacity = capacity
        self._failed = failed
        self._steps: deque[tuple[int, Step]] = deque()
        self._weight = 0
        self._room = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    async def put(self, weight: int, step: Step) -> None:
        """Have a step done after the ones before it."""
        self._steps.append((weight, step))
        self._weight += weight
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        while self._weight > self._capacity:
            self._room.clear()
            await self._room.wait()

    async def stop(self) -> None:
        """Drop what is undone."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)

    async def _run(self) -> None:
        """Ends when nothing is left to do; the next `put` starts anew."""
        try:
            while self._steps:
                weight, step = self._steps[0]
                await step()
                self._steps.popleft()
                self._weight -= weight
                self._room.set()
        except Exception as error:
            if self._failed.done():
                raise
            self._failed.set_exception(error)
        finally:
            self._runner = None
