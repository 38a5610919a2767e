"""What the service holds in memory of a live runtime: its guest, its first process, and the gate for its files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from runta.guest import Guest
from runta.kernel.process import ProcessId, open_pidfd


class Box:
    """One live runtime. Made when its processes run, closed when they end."""

    def __init__(self, runtime_id: str, process: ProcessId, socket: Path) -> None:
        self.runtime_id = runtime_id
        self.process = process
        self.guest = Guest(socket)
        self.drains: dict[int, asyncio.Task[None]] = {}
        """Detached task → what carries its output to disk."""
        self.idle_after: float | None = None
        """Seconds without use after which it is suspended; None: never."""
        self._uses = 0
        self._last_use = time.monotonic()
        self._pidfd: int | None = None
        self._writers = 0
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()

    def watch(self, ended: Callable[[], object]) -> None:
        """Call `ended` once when the first process ends; soon, if it has ended already."""
        loop = asyncio.get_running_loop()
        self._pidfd = open_pidfd(self.process)
        if self._pidfd is None:
            loop.call_soon(ended)
        else:
            loop.add_reader(self._pidfd, self._report_end, ended)

    def _report_end(self, ended: Callable[[], object]) -> None:
        self.unwatch()
        ended()

    def unwatch(self) -> None:
        """Stop watching the first process."""
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    async def close(self) -> None:
        """Let go of the runtime; its processes are not touched."""
        self.unwatch()
        for drain in self.drains.values():
            drain.cancel()
        await asyncio.gather(*self.drains.values(), return_exceptions=True)
        self.drains.clear()
        await self.guest.aclose()

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """The block works with the runtime, which is not idle meanwhile."""
        self._uses += 1
        try:
            yield
        finally:
            self._uses -= 1
            self.touch()

    def touch(self) -> None:
        """The idle time begins anew."""
        self._last_use = time.monotonic()

    def is_idle(self) -> bool:
        """Whether nobody used it for as long as its policy says."""
        if self.idle_after is None or self._uses:
            return False
        return time.monotonic() - self._last_use >= self.idle_after

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """The block writes into the runtime's files; it waits while they are being captured."""
        while not self._open.is_set():
            await self._open.wait()
        self._writers += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._writers -= 1
            if self._writers == 0:
                self._idle.set()

    async def hold_still(self) -> None:
        """Close the gates: no connection to the guest init is open and nothing of ours writes when this returns."""
        self._open.clear()
        try:
            await self._idle.wait()
            await self.guest.quiesce()
        except BaseException:
            self.let_go()
            raise

    def stay_still(self) -> None:
        """Keep the gates closed to a runtime that was found frozen."""
        self._open.clear()
        self.guest.assume_quiesced()

    def let_go(self) -> None:
        """Open the gates; attached streams go on where they were."""
        self.guest.open_gate()
        self._open.set()
