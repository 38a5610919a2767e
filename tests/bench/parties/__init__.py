"""Those who are measured: `ours`, `runc`, `podman`. Each does the same few verbs and tells how long they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tests.bench.workload import Load

MEMORY_MIB = 2048
"""Limit of ours and runc's; podman's containers have none."""


@dataclass(frozen=True)
class Taken:
    """A checkpoint: its handle, and what it cost in milliseconds."""

    handle: Any
    total_ms: float
    pause_ms: float
    """As the party itself tells it: ours from the manifest, runc's and podman's CRIU's `frozen_time`."""


@dataclass(frozen=True)
class Restored:
    """A restored container, and milliseconds: of the restore alone, and until its first exec is done."""

    box: Any
    restore_ms: float
    first_exec_ms: float


class Party(Protocol):
    """One way to run containers. Times are milliseconds around the verb alone: `load` starts after the clock stopped
    where it is not the container's own command."""

    name: str

    def create(self, load: Load) -> tuple[Any, float]: ...

    def run(self, box: Any, argv: Sequence[str]) -> None:
        """Run a command inside to its end, and fail if it does."""

    def exec_true(self, box: Any) -> float: ...

    def checkpoint(self, box: Any) -> Taken: ...

    def restore(self, taken: Taken) -> Restored: ...

    def read(self, box: Any, path: str) -> str:
        """A file of the container."""

    def delete(self, box: Any) -> float: ...

    def forget(self, taken: Taken) -> None:
        """Remove a checkpoint."""

    def close(self) -> None:
        """Leave nothing on the host."""
