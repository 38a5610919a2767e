"""What is measured, by name and in the order of a full run."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.setting import Bench
from tests.bench.suites import execs, files, forks, growth, memory, pause, transfer, verbs

SUITES: dict[str, Callable[[Bench], None]] = {
    "verbs": verbs.measure,
    "files": files.measure,
    "forks": forks.measure,
    "exec": execs.measure,
    "transfer": transfer.measure,
    "pause": pause.measure,
    "growth": growth.measure,
    "memory": memory.measure,
}
