"""Files in and out: one large one and many small ones; podman's `cp` beside it; and what it costs the service."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.bench.clock import timed
from tests.bench.parties.ours import Ours, cleared
from tests.bench.setting import Bench
from tests.bench.workload import IDLE

LARGE_MIB = 256
SMALL_COUNT, SMALL_SIZE = 2000, 4096
_MIB = 1 << 20


def measure(bench: Bench) -> None:
    place = bench.root / "transfer"
    large, small = make_sources(place)
    for _ in bench.turns(0.5):
        measure_ours(bench, large, small)
        if bench.podman:
            measure_podman(bench, large, small)
    shutil.rmtree(place)


def make_sources(place: Path) -> tuple[Path, Path]:
    """A file of random bytes, and a directory of small ones."""
    small = place / "small"
    small.mkdir(parents=True)
    for number in range(SMALL_COUNT):
        (small / f"{number}").write_bytes(os.urandom(SMALL_SIZE))
    large = place / "large"
    with large.open("wb") as file:
        for _ in range(LARGE_MIB):
            file.write(os.urandom(_MIB))
    return large, small


def measure_ours(bench: Bench, large: Path, small: Path) -> None:
    with cleared(bench.ours):
        box, _ = bench.ours.create(IDLE)
        files = box.files
        back = bench.root / "transfer" / "back"
        for source, case in ((large, f"{LARGE_MIB} MiB file"), (small, f"{SMALL_COUNT} small files")):
            before = reset_peak(bench.ours)
            add(bench, case, "upload", "ours", timed(lambda source=source: files.upload(source, "/root/in"))[1])
            add(bench, case, "download", "ours", timed(lambda: files.download("/root/in", back))[1])
            bench.readings.add(case, "service_peak_growth_mb", "ours", peak_mb(bench.ours) - before)
            files_gone(back)
            bench.ours.run(box, ["rm", "-rf", "/root/in"])


def measure_podman(bench: Bench, large: Path, small: Path) -> None:
    podman = bench.podman
    box, _ = podman.create(IDLE)
    back = bench.root / "transfer" / "back"
    for source, case in ((large, f"{LARGE_MIB} MiB file"), (small, f"{SMALL_COUNT} small files")):
        inside = f"{box}:/root/{source.name}"
        add(bench, case, "upload", "podman", timed(lambda s=source, i=inside: podman.call("cp", str(s), i))[1])
        add(bench, case, "download", "podman", timed(lambda i=inside: podman.call("cp", i, str(back)))[1])
        files_gone(back)
    podman.delete(box)


def add(bench: Bench, case: str, verb: str, party: str, spent_ms: float) -> None:
    """Throughput: MiB a second of the large file, files a second of the small ones."""
    if "MiB" in case:
        bench.readings.add(case, f"{verb}_mib_s", party, LARGE_MIB / spent_ms * 1000)
    else:
        bench.readings.add(case, f"{verb}_files_s", party, SMALL_COUNT / spent_ms * 1000)


def files_gone(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def reset_peak(ours: Ours) -> float:
    """Begin the service's peak anew (proc(5), clear_refs); returns its resident memory now, MB."""
    Path(f"/proc/{ours.service.pid}/clear_refs").write_text("5")
    return peak_mb(ours)


def peak_mb(ours: Ours) -> float:
    """The most memory the service had resident since then, MB."""
    status = Path(f"/proc/{ours.service.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
