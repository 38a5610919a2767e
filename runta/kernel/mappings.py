"""Files that processes have mapped shared (proc(5), /proc/pid/maps).

Stores through such a mapping change a file and may leave its size and times as they were: the times change when a page
is first written to after it was written out, not at each store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

UNKNOWN = -1
_ESCAPE = re.compile(r"\\([0-7]{3})")


def find_shared_mappings(pids: Iterable[int], merged: Path, upper: Path) -> set[int]:
    """Inodes, in the upper dir, of files of the overlay at `merged` that one of the processes has mapped shared, and
    UNKNOWN if one of them can't be found by the name it was mapped by.

    Also read-only mappings: one that was writable keeps the pages it made writable. Before Linux 6.8 the overlay shows
    the upper dir's own device and inode here, later its own, which may be those of a lower file.
    """
    above, below = _name_device(merged), _name_device(upper)
    found: set[int] = set()
    for device, inode, name in {shared for pid in pids for shared in _read_shared(pid)}:
        if device == below:
            found.add(inode)
        elif device == above:
            found.add(_find(upper, name))
    return found


def _name_device(path: Path) -> str:
    device = path.stat().st_dev
    return f"{os.major(device):02x}:{os.minor(device):02x}"


def _read_shared(pid: int) -> Iterator[tuple[str, int, str]]:
    """Device, inode and path, from the root of its file system; a process that is gone has none."""
    try:
        text = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")
    except OSError:
        return
    for line in text.split("\n"):
        fields = line.split(" ", 5)
        if len(fields) == 6 and fields[1].endswith("s"):
            yield fields[3], int(fields[4]), _ESCAPE.sub(lambda found: chr(int(found[1], 8)), fields[5].lstrip(" "))


def _find(upper: Path, name: str) -> int:
    """The inode of a name; UNKNOWN for one that is gone, though its file may have others."""
    try:
        return os.lstat(f"{upper}/{name.lstrip('/')}").st_ino
    except OSError:
        return UNKNOWN
