"""What runs inside: Python programs, the same for every party."""

from __future__ import annotations

from dataclasses import dataclass

READY = "/tmp/ready"
GAPS = "/tmp/gaps"

_HOLD = """
import os, sys, time
x = bytearray(int(sys.argv[1]) << 20)
for at in range(0, len(x), 4096):
    x[at : at + 2048] = os.urandom(2048)
open('/tmp/ready', 'w')
"""
"""Memory that compresses to a half, as programs' does: half of each page is random. It matters to podman alone."""

_HOG = f"{_HOLD}time.sleep(1e6)"

_WATCH = f"""{_HOLD}
gaps = open('/tmp/gaps', 'a', buffering=1)
last = time.monotonic()
while True:
    time.sleep(0.001)
    read = time.monotonic()
    if read - last > 0.003:
        gaps.write(f'{{last}} {{read}}\\n')
    last = read
"""
"""Reads CLOCK_MONOTONIC every millisecond and writes down each gap of more than three: its begin and end, seconds."""

_FILES = """
import os, sys
count, size = map(int, sys.argv[1:3])
data = os.urandom(size)
for number in range(count):
    place = f'/root/files/{number // 100}'
    if number % 100 == 0:
        os.makedirs(place, exist_ok=True)
    with open(f'{place}/{number}', 'wb') as file:
        file.write(number.to_bytes(4, 'big') + data[4:])
"""


@dataclass(frozen=True)
class Load:
    """What a container runs beside its first process; without `argv` nothing."""

    name: str
    argv: tuple[str, ...] = ()


IDLE = Load("idle")


def hog(mib: int) -> Load:
    """A process that holds so much memory and sleeps."""
    return Load(f"{mib}MB", ("python3", "-c", _HOG, str(mib))) if mib else IDLE


def watcher(mib: int = 0) -> Load:
    """A process that notices when it stands still, and holds so much memory."""
    return Load(f"watch {mib}MB", ("python3", "-c", _WATCH, str(mib)))


def make_files(count: int, size: int = 4096) -> tuple[str, ...]:
    """A command that writes so many files of `size` bytes; again it writes the first ones anew."""
    return ("python3", "-c", _FILES, str(count), str(size))


def longest_gap(text: str, begin: float, end: float) -> float:
    """Milliseconds of the longest gap in `watcher`'s notes that touches a time on CLOCK_MONOTONIC, seconds."""
    pairs = [tuple(map(float, line.split())) for line in text.splitlines() if len(line.split()) == 2]
    return max((1000 * (stop - start) for start, stop in pairs if start < end and stop > begin), default=0.0)
