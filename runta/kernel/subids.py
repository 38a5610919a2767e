"""The host's subordinate ids: the range of ids that runtimes have as their own (subuid(5), subgid(5))."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runta.errors import KernelError
from runta.models import IdMap

OWNER = "runta"
SUBUID = Path("/etc/subuid")
SUBGID = Path("/etc/subgid")
_FIRST = 100_000
_SIZE = 65_536
_LAST = 2**32 - 2
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of either file."""

    owner: str
    start: int
    size: int


def find_subordinate_ids(subuid: Path = SUBUID, subgid: Path = SUBGID) -> IdMap | None:
    """The range both files give to runta, or None."""
    users, groups = (_own(read_entries(path)) for path in (subuid, subgid))
    common = [entry for entry in users if entry in groups]
    return IdMap(start=common[0].start, size=common[0].size) if common else None


def ensure_subordinate_ids(subuid: Path = SUBUID, subgid: Path = SUBGID) -> tuple[IdMap, bool]:
    """The range, written into both files if it is not there yet; whether it was written. Raises KernelError."""
    found = find_subordinate_ids(subuid, subgid)
    if found is not None:
        return found, False
    entries = [*read_entries(subuid), *read_entries(subgid)]
    wanted = _choose(entries)
    for path in (subuid, subgid):
        _replace_own(path, wanted)
    return wanted, True


def read_entries(path: Path) -> list[Entry]:
    """The lines of a file that are entries; a missing file has none. Raises KernelError."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    except OSError as err:
        raise KernelError(f"can't read {path}", cause=err.strerror) from err
    fields = [line.split(":") for line in lines if not line.lstrip().startswith("#")]
    return [
        Entry(field[0], int(field[1]), int(field[2]))
        for field in fields
        if len(field) == 3 and field[1].strip().isdecimal() and field[2].strip().isdecimal()
    ]


def _own(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.owner == OWNER and entry.size >= _SIZE]


def _choose(entries: Sequence[Entry]) -> IdMap:
    """A range one of the files gives us already, if nobody else has it; else the first free one."""
    others = [entry for entry in entries if entry.owner != OWNER]
    owned = [entry.start for entry in _own(entries)]
    steps = range(_FIRST, _LAST - _SIZE, _SIZE)
    for start in (*owned, *steps):
        if not any(entry.start < start + _SIZE and start < entry.start + entry.size for entry in others):
            return IdMap(start=start, size=_SIZE)
    raise KernelError(
        "no range of 65536 subordinate ids is free",
        cause=f"{SUBUID} and {SUBGID} give them all away",
        hint="remove one there",
    )


def _replace_own(path: Path, wanted: IdMap) -> None:
    """Write one line for runta and keep all the others, with the file's mode and owner, by one rename."""
    try:
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if not line.startswith(f"{OWNER}:")]
        text = "\n".join([*kept, f"{OWNER}:{wanted.start}:{wanted.size}"]) + "\n"
        _write_atomically(path, text)
    except OSError as err:
        raise KernelError(
            f"can't write subordinate ids to {path}", cause=err.strerror, hint="run this as root on a writable /etc"
        ) from err


def _write_atomically(path: Path, text: str) -> None:
    info = path.stat() if path.exists() else None
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            os.fchmod(fd, info.st_mode & 0o7777 if info else _MODE)
            if info:
                os.fchown(fd, info.st_uid, info.st_gid)
            file.flush()
            os.fsync(fd)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
