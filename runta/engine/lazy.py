"""Runtimes whose memory is still coming in, and what must wait for it.

Blocking code; a thread for each such runtime waits for its pager. A service that ends meanwhile leaves the pager at
work, and the next one takes it over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from runta.errors import FailedPrecondition
from runta.kernel.lazy import (
    end_pager,
    find_pager,
    is_complete,
    reap_pager,
    start_pager,
    try_userfaultfd,
)
from runta.kernel.process import ProcessId, wait_gone
from runta.layout import Layout, RuntimeDir
from runta.store.staging import remove_tree

log = logging.getLogger("runta.engine")

PATIENCE = 120.0
"""Seconds a checkpoint waits for the rest of the memory: at disk speed, several GiB."""
_STEP = 3600.0
_END_TIMEOUT = 10.0
MEMORY_LOST = "its memory could not all be brought in: the pager ended early (its log is lazy-pages.log)"


def require_lazy() -> None:
    """Raise FailedPrecondition where the kernel has no userfaultfd for the processes of a runtime."""
    reason = try_userfaultfd()
    if reason is not None:
        raise FailedPrecondition(
            "a lazy restore is not possible on this host",
            cause=f"userfaultfd(2) in a user namespace: {reason}",
            hint="`sysctl vm.unprivileged_userfaultfd=1` allows it for all users of the host; or restore without lazy",
        )


@dataclass(slots=True)
class _Watch:
    """One pager that is waited for."""

    pager: ProcessId
    thread: threading.Thread | None = None
    wanted: bool = True
    """False once its runtime is being ended: then an early end of the pager harms nobody."""


@dataclass(slots=True, kw_only=True)
class Pagers:
    """The pagers of this state directory's runtimes."""

    layout: Layout
    path: str
    """PATH for CRIU."""
    lose: Callable[[str], object]
    """Ends the processes of a runtime at once, by its id."""
    _lost: set[str] = field(default_factory=set)
    """Runtimes that were ended because memory was missing."""
    _watches: dict[str, _Watch] = field(default_factory=dict)

    def start(self, runtime_id: str) -> None:
        """Start the pager of a restore that is about to begin, on the runtime's own links to the dump."""
        place = self.layout.runtime(runtime_id)
        pager = start_pager("criu", dump=place.dump, work=place.log, path=self.path)
        self._watches[runtime_id] = _Watch(pager)

    def watch(self, runtime_id: str) -> None:
        """From now on the runtime lives: its dump is removed when all is in, and it is ended if that fails."""
        found = self._watches[runtime_id]
        found.thread = threading.Thread(
            target=self._follow, args=(runtime_id, found), name=f"pager {runtime_id}", daemon=True
        )
        found.thread.start()

    def adopt(self, runtime_id: str) -> None:
        """Take over a runtime that was found running: what its pager has not finished goes on, or ends the runtime."""
        place = self.layout.runtime(runtime_id)
        pager = find_pager(place.log) if place.dump.exists() else None
        if pager is not None:
            self._watches[runtime_id] = _Watch(pager)
            self.watch(runtime_id)

    def is_busy(self, runtime_id: str) -> bool:
        """Whether some of a runtime's memory is still in its dump only."""
        found = self._watches.get(runtime_id)
        return found is not None and (found.thread is None or found.thread.is_alive())

    def wait(self, runtime_id: str, patience: float = PATIENCE) -> None:
        """Return once all memory of a runtime is in.

        Raises FailedPrecondition if that takes longer than `patience` seconds.
        """
        found = self._watches.get(runtime_id)
        if found is None or found.thread is None:
            return
        found.thread.join(patience)
        if found.thread.is_alive():
            raise FailedPrecondition(
                "the runtime's memory is still coming in",
                cause=f"it was restored lazily, and after {patience:.0f} s some of it is still in its checkpoint only",
                hint="try again later",
            )
        if runtime_id in self._lost:
            raise FailedPrecondition("the runtime is lost", cause=MEMORY_LOST)

    def find_loss(self, runtime_id: str) -> str | None:
        """Why a runtime was ended here, if it was."""
        return MEMORY_LOST if runtime_id in self._lost else None

    def stop(self, runtime_id: str) -> None:
        """Forget a runtime whose processes are gone."""
        found = self._watches.pop(runtime_id, None)
        pager = found.pager if found else find_pager(self.layout.runtime(runtime_id).log)
        if found is not None:
            found.wanted = False
        if pager is not None:
            end_pager(pager)
            wait_gone(pager, _END_TIMEOUT)
        if found is not None and found.thread is not None:
            found.thread.join()
        elif found is not None:
            reap_pager(found.pager)
        self._lost.discard(runtime_id)

    def _follow(self, runtime_id: str, watch: _Watch) -> None:
        while not wait_gone(watch.pager, _STEP):
            pass
        reap_pager(watch.pager)
        place = self.layout.runtime(runtime_id)
        if is_complete(place.log):
            self._finish(runtime_id, place, watch)
        elif watch.wanted:
            log.error("runtime %s: %s", runtime_id, MEMORY_LOST)
            self._lost.add(runtime_id)
            self.lose(runtime_id)

    def _finish(self, runtime_id: str, place: RuntimeDir, watch: _Watch) -> None:
        log.info("runtime %s: all memory is in", runtime_id)
        if watch.wanted:
            remove_tree(place.dump)
