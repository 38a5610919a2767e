"""What an idle runtime costs: of the service, of its guest init, of the kernel, all together; and on disk."""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path

from runta.kernel.cgroups import find_cgroups
from tests.bench.parties.ours import Ours, cleared
from tests.bench.setting import Bench
from tests.bench.suites.forks import disk_kb
from tests.bench.workload import IDLE

COUNT = 50
_PODMAN_COUNT = 20
_SETTLE = 2.0
_ROUNDS, _QUICK_ROUNDS = 7, 3


def measure(bench: Bench) -> None:
    for _ in range(_QUICK_ROUNDS if bench.quick else _ROUNDS):
        with cleared(bench.ours):
            measure_ours(bench)
        if bench.podman:
            measure_podman(bench)


def measure_ours(bench: Bench) -> None:
    ours = bench.ours
    ours.restart()
    ours.delete(ours.create(IDLE)[0])
    free, service = available_mb(), resident_mb(ours)
    boxes = [ours.create(IDLE)[0] for _ in range(COUNT)]
    total = (free - available_mb()) / COUNT
    inits = [read_rollup(pid) for box in boxes for pid in find_cgroups().processes(box.id)]
    growth = (resident_mb(ours) - service) / COUNT
    proportional = sum(one["Pss"] for one in inits) / COUNT

    def add(verb: str, value: float) -> None:
        bench.readings.add(f"{COUNT} idle", verb, "ours", value)

    add("service_growth_per_runtime_mb", growth)
    add("init_rss_mb", sum(one["Rss"] for one in inits) / COUNT)
    add("init_pss_mb", proportional)
    add("memory_cgroup_per_runtime_mb", sum(find_cgroups().memory_bytes(box.id) for box in boxes) / COUNT / (1 << 20))
    if total < growth + proportional:
        bench.notes.append(
            "memory: a total below its parts is left out: others on this host gave memory back meanwhile"
        )
    else:
        add("total_per_runtime_mb", total)
        add("kernel_per_runtime_mb", total - growth - proportional)
    add("disk_per_runtime_kb", statistics.median(disk_kb(ours.layout.runtime(box.id).root) for box in boxes))
    taken = ours.checkpoint(boxes[0])
    fork = ours.restore(taken).box
    add("disk_per_fork_kb", disk_kb(ours.layout.runtime(fork.id).root))


def measure_podman(bench: Bench) -> None:
    free = available_mb()
    boxes = [bench.podman.create(IDLE)[0] for _ in range(_PODMAN_COUNT)]
    bench.readings.add(f"{COUNT} idle", "total_per_runtime_mb", "podman", (free - available_mb()) / _PODMAN_COUNT)
    for box in boxes:
        bench.podman.delete(box)


def available_mb() -> float:
    """The host's MemAvailable (proc(5)) when it has settled, MB."""
    gc.collect()
    time.sleep(_SETTLE)
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) / 1024


def resident_mb(ours: Ours) -> float:
    """The service's resident memory, MB."""
    return read_rollup(ours.service.pid)["Rss"]


def read_rollup(pid: int) -> dict[str, float]:
    """A process's memory (proc(5), smaps_rollup), MB by name."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
