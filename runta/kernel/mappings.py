"""Files that processes have mapped shared (proc(5), /proc/pid/maps).

Stores through such a mapping change a file and may leave its size and times as they were: the times change when a page
is first written to after it was written out, not at each store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_DELETED = " (deleted)"
_ESCAPE = re.compile(r"\\([0-7]{3})")


def find_shared_mappings(pids: Iterable[int], merged: Path, upper: Path) -> set[int]:
    """Inodes, in the upper dir, of files of the overlay at `merged` that one of the processes has mapped shared.

    Also read-only mappings: one that was writable keeps the pages it made writable.
    """
    device = merged.stat().st_dev
    names = {name for pid in pids for name in _read_shared(pid, device)}
    return {info.st_ino for name in names if (info := _find(upper, name))}


def _read_shared(pid: int, device: int) -> Iterator[str]:
    """Paths, from the root of the file system on the device; a process that is gone has none."""
    wanted = f"{os.major(device):02x}:{os.minor(device):02x}"
    try:
        text = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")
    except OSError:
        return
    for line in text.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1].endswith("s") and fields[3] == wanted:
            yield _ESCAPE.sub(lambda found: chr(int(found[1], 8)), fields[5].removesuffix(_DELETED))


def _find(upper: Path, name: str) -> os.stat_result | None:
    try:
        return os.lstat(f"{upper}/{name.lstrip('/')}")
    except OSError:
        return None
