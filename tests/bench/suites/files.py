"""Checkpoints of containers whose files changed. runc's is the dump of the processes alone: it captures no files."""

from __future__ import annotations

import os
from pathlib import Path

from tests.bench.clock import timed
from tests.bench.parties import Party
from tests.bench.parties.ours import Ours
from tests.bench.setting import Bench
from tests.bench.workload import IDLE, make_files

COUNTS = (1, 1000, 20_000)
_AGAIN = 10
"""Files that change between the first and the second checkpoint."""
_LARGE = 20_000
_LARGE_SHARE = 0.5
"""Of the rounds, for a case of so many files: one of them takes a minute."""


def measure(bench: Bench) -> None:
    bench.notes.append("files: runc captures no files; its figures are the dump and the restore of the processes alone")
    for count in COUNTS:
        turns = bench.turns(_LARGE_SHARE, warm_up=False) if count >= _LARGE else bench.turns()
        for parties in turns:
            for party in parties:
                measure_round(bench, party, count)


def measure_round(bench: Bench, party: Party, count: int) -> None:
    case = f"{count} files"
    box, _ = party.create(IDLE)
    party.run(box, make_files(count))
    if isinstance(party, Ours):
        upper = party.layout.runtime(box.id).upper
        bench.readings.add(case, "stat_walk", "reference", timed(lambda: walk(upper))[1])
    first = party.checkpoint(box)
    bench.readings.add(case, "checkpoint", party.name, first.total_ms)
    bench.readings.add(case, "pause", party.name, first.pause_ms)
    restored = party.restore(first)
    bench.readings.add(case, "restore", party.name, restored.restore_ms)
    bench.readings.add(case, "restore_to_first_exec", party.name, restored.first_exec_ms)
    party.delete(restored.box)
    party.run(box, make_files(min(count, _AGAIN)))
    second = party.checkpoint(box)
    bench.readings.add(case, "second_checkpoint", party.name, second.total_ms)
    bench.readings.add(case, "second_pause", party.name, second.pause_ms)
    party.delete(box)
    for taken in (first, second):
        party.forget(taken)


def walk(root: Path) -> int:
    """Call lstat on everything below a directory, and count it: the least any look for changes costs."""
    count = 0
    for directory, _, names in os.walk(root):
        count += 1 + len([os.lstat(os.path.join(directory, name)) for name in names])
    return count
