"""Many forks of one checkpoint at once, and what a fork costs whose source has changed much."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.clock import timed
from tests.bench.parties import Taken
from tests.bench.parties.ours import Ours, cleared
from tests.bench.setting import Bench
from tests.bench.workload import IDLE, Load, hog, make_files

COUNTS = (1, 10, 50)
_RAW = 10
_LOADS = (IDLE, hog(64))
_BIG_FILES, _BIG_SIZE = 20_000, 25_000
_BIG_ROUNDS = 5


def measure(bench: Bench) -> None:
    for load in _LOADS:
        for _ in bench.turns(0.5):
            measure_raw(bench, load)
            measure_ours(bench, load)
    measure_big(bench)


def measure_ours(bench: Bench, load: Load) -> None:
    """Per fork: the time until all of them run, divided by their number."""
    with cleared(bench.ours):
        source, _ = bench.ours.create(load)
        taken = bench.ours.checkpoint(source)
        for count in COUNTS[:2] if bench.quick or load.argv else COUNTS:
            boxes, spent = timed(lambda count=count: fork_at_once(bench.ours, taken, count))
            bench.readings.add(load.name, f"{count} at once, per fork", "ours", spent / count)
            for box in boxes:
                box.delete()
        if hasattr(source, "fork"):
            _, spent = timed(lambda: source.fork(_RAW))
            bench.readings.add(load.name, f"runtime.fork({_RAW}), per fork, with its checkpoint", "ours", spent / _RAW)


def fork_at_once(ours: Ours, taken: Taken, count: int) -> list:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: ours.restore(taken).box, range(count)))


def measure_raw(bench: Bench, load: Load) -> None:
    """Per restore: the time from the first one's begin to the last one's end, divided by their number."""
    source, _ = bench.runc.create(load)
    taken = bench.runc.checkpoint(source)
    for width in (1, 2):
        forks, span = bench.runc.restore_many(taken, _RAW, width)
        bench.readings.add(load.name, f"{_RAW} restores, {width} at a time, per restore", "runc", span / _RAW)
        for fork in forks:
            bench.runc.delete(fork)
    bench.runc.delete(source)
    bench.runc.forget(taken)


def measure_big(bench: Bench) -> None:
    """Forks of an untouched runtime and of one with 20,000 files and 500 MB of changes, taking turns."""
    ours = bench.ours
    with cleared(ours):
        small, big = ours.create(IDLE)[0], ours.create(IDLE)[0]
        ours.run(big, make_files(_BIG_FILES, _BIG_SIZE))
        taken = {
            "fork of an empty runtime": ours.checkpoint(small),
            "fork of 20,000 files, 500 MB": ours.checkpoint(big),
        }
        for number in range(max(_BIG_ROUNDS, bench.rounds) + 1):
            bench.readings.counting = number > 0
            for case, one in taken.items():
                restored = ours.restore(one)
                bench.readings.add(case, "restore", "ours", restored.restore_ms)
                bench.readings.add(case, "restore_to_first_exec", "ours", restored.first_exec_ms)
                restored.box.delete()
                unwritten = ours.restore(one).box
                place = ours.layout.runtime(unwritten.id).root
                bench.readings.add(case, "disk_kb", "ours", disk_kb(place))
                unwritten.delete()
        bench.readings.counting = True


def disk_kb(root: Path) -> float:
    """KB a directory occupies by itself: without other mounts, and without files that are hard links of others."""
    device, total = root.lstat().st_dev, 0
    places = [root]
    while places:
        place = places.pop()
        info = place.lstat()
        if info.st_dev != device:
            continue
        if place.is_dir() and not place.is_symlink():
            places.extend(place.iterdir())
        elif info.st_nlink > 1:
            continue
        total += info.st_blocks * 512
    return total / 1024
