"""What grows with what: memory, changed files, the depth of the lineage, the number of runtimes that run. Ours alone
but for memory, where raw runc stands beside it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.parties import Party
from tests.bench.parties.ours import cleared
from tests.bench.setting import Bench
from tests.bench.workload import IDLE, hog, make_files

_MEMORY_MIB = (0, 64, 256, 512, 1024)
_FILES = (1, 100, 1000, 5000, 20_000)
_DEPTHS = (1, 5, 10, 20, 30, 40)
_RUNNING = (0, 25, 50, 100)
_SHARE = 0.4
_SAMPLES = 5
"""Creates at each number of running runtimes, checkpoints and restores at each depth."""


def measure(bench: Bench) -> None:
    for mib in _MEMORY_MIB if not bench.quick else _MEMORY_MIB[:3]:
        for _ in bench.turns(_SHARE):
            for party in (bench.ours, bench.runc):
                measure_verbs(bench, party, f"memory {mib} MB", mib, 0)
    for count in _FILES if not bench.quick else _FILES[:4]:
        for _ in bench.turns(_SHARE, warm_up=False):
            measure_verbs(bench, bench.ours, f"{count} files", 0, count)
    with cleared(bench.ours):
        measure_depth(bench, _DEPTHS if not bench.quick else _DEPTHS[:3])
    with cleared(bench.ours):
        measure_running(bench)


def measure_verbs(bench: Bench, party: Party, case: str, mib: int, files: int) -> None:
    box, _ = party.create(hog(mib))
    if files:
        party.run(box, make_files(files))
    taken = party.checkpoint(box)
    bench.readings.add(case, "checkpoint", party.name, taken.total_ms)
    bench.readings.add(case, "pause", party.name, taken.pause_ms)
    restored = party.restore(taken)
    bench.readings.add(case, "restore", party.name, restored.restore_ms)
    for one in (restored.box, box):
        party.delete(one)
    party.forget(taken)


def measure_depth(bench: Bench, depths: Sequence[int]) -> None:
    """A checkpoint of a fork of a checkpoint, and so on; each generation changes one file."""
    box, _ = bench.ours.create(IDLE)
    for depth in range(1, max(depths) + 1):
        bench.ours.run(box, make_files(1))
        taken = bench.ours.checkpoint(box)
        restored = bench.ours.restore(taken)
        if depth in depths:
            case = f"generation {depth}"
            for _ in range(_SAMPLES):
                again = bench.ours.checkpoint(box)
                bench.readings.add(case, "checkpoint", "ours", again.total_ms)
                fork = bench.ours.restore(again)
                bench.readings.add(case, "restore", "ours", fork.restore_ms)
                bench.ours.delete(fork.box)
                bench.ours.forget(again)
        bench.ours.delete(box)
        box = restored.box


def measure_running(bench: Bench) -> None:
    """Creating one more runtime beside so many."""
    running = 0
    bench.ours.delete(bench.ours.create(IDLE)[0])
    for level in _RUNNING:
        while running < level:
            bench.ours.create(IDLE)
            running += 1
        for _ in range(_SAMPLES):
            box, spent = bench.ours.create(IDLE)
            bench.readings.add(f"{level} running", "create", "ours", spent)
            bench.readings.add(f"{level} running", "exec", "ours", bench.ours.exec_true(box))
            bench.readings.add(f"{level} running", "delete", "ours", bench.ours.delete(box))
