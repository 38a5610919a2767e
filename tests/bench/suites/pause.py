"""How long a checkpoint stops the work, as the work sees it: the longest gap of a program that reads the clock every
millisecond, next to the pause that the party tells."""

from __future__ import annotations

import time

from tests.bench.parties import Party
from tests.bench.setting import Bench
from tests.bench.workload import GAPS, Load, longest_gap, make_files, watcher

_CASES: tuple[tuple[str, Load, int], ...] = (
    ("idle", watcher(), 0),
    ("64MB", watcher(64), 0),
    ("1000 files", watcher(), 1000),
)
_SETTLE = 0.3
"""Seconds around a checkpoint in which the program's own gaps are looked at."""


def measure(bench: Bench) -> None:
    for case, load, files in _CASES:
        for parties in bench.turns():
            for party in parties:
                measure_round(bench, party, case, load, files)


def measure_round(bench: Bench, party: Party, case: str, load: Load, files: int) -> None:
    box, _ = party.create(load)
    if files:
        party.run(box, make_files(files))
    time.sleep(_SETTLE)
    begin = time.monotonic()
    taken = party.checkpoint(box)
    end = time.monotonic()
    time.sleep(_SETTLE)
    text = party.read(box, GAPS)
    bench.readings.add(case, "longest_gap", party.name, longest_gap(text, begin, end))
    bench.readings.add(case, "pause", party.name, taken.pause_ms)
    bench.readings.add(case, "checkpoint", party.name, taken.total_ms)
    bench.readings.add(case, "gap_without_checkpoint", party.name, longest_gap(text, begin - _SETTLE, begin))
    party.delete(box)
    party.forget(taken)
