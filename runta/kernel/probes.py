"""Trying things out on this host without leaving a trace: each probe does the thing itself, small, and undoes it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runta.errors import KernelError
from runta.kernel.mounts import OVERLAY_OPTIONS, mount_overlay, open_user_namespace, unmount
from runta.kernel.process import run
from runta.models import IdMap

_FICLONE = 0x40049409  # linux/fs.h
_QUICK = 10.0
_PROBE_IDS = IdMap(start=100_000)


def try_overlay(directory: Path) -> str | None:
    """Mount an overlay with our options in a mount namespace of its own; None, or why it failed."""
    with _scratch(directory) as place:
        lower, upper, work, merged = _make_overlay_directories(place)
        options = f"lowerdir={lower},upperdir={upper},workdir={work},{OVERLAY_OPTIONS}"
        argv: list[str | Path] = ["unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, merged]
        done = run(argv, timeout=_QUICK, check=False)
        return None if done.returncode == 0 else _last(done.stderr)


def try_idmapped_overlay(directory: Path, ids: IdMap | None) -> str | None:
    """Mount an overlay on an idmapped lower dir and look at an owner through it; None, or why it failed."""
    wanted = ids or _PROBE_IDS
    with _scratch(directory) as place:
        lower, upper, work, merged = _make_overlay_directories(place)
        (lower / "file").touch()
        userns = open_user_namespace(wanted)
        try:
            mount_overlay([lower], upper=upper, work=work, merged=merged, attach=place / "attach", userns=userns)
        except (KernelError, OSError) as err:
            return str(getattr(err, "cause", None) or err)
        finally:
            os.close(userns)
        try:
            owner = (merged / "file").stat().st_uid
        finally:
            unmount(merged)
        return None if owner == wanted.start else f"a file of id 0 shows as {owner} instead of {wanted.start}"


def try_user_namespace(ids: IdMap | None) -> str | None:
    """Make a user namespace with an id map; None, or why it failed."""
    try:
        os.close(open_user_namespace(ids or _PROBE_IDS))
    except (KernelError, OSError) as err:
        return str(getattr(err, "cause", None) or err)
    return None


def can_reflink(directory: Path) -> bool:
    """Whether the file system shares a copy's blocks (FICLONE, ioctl_ficlone(2))."""
    with tempfile.TemporaryFile(dir=directory) as source, tempfile.TemporaryFile(dir=directory) as target:
        source.write(b"x" * 4096)
        source.flush()
        try:
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
        except OSError:
            return False
        return True


def has_vdso_getrandom() -> bool:
    """Whether the kernel gives processes a random state of their own: the vDSO's symbol, looked for in this process."""
    try:
        maps = Path("/proc/self/maps").read_text()
        line = next(line for line in maps.splitlines() if line.endswith("[vdso]"))
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        with Path("/proc/self/mem").open("rb", buffering=0) as memory:
            memory.seek(start)
            return b"getrandom" in memory.read(end - start)
    except (OSError, StopIteration, ValueError):
        return False


def file_system_of(path: Path) -> str:
    """The type of the file system that holds an existing path (proc(5), mountinfo)."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    best, kind = -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if _lies_below(path.resolve(), fields[4]) and len(fields[4]) >= best and (fields[2] == wanted or best < 0):
            best, kind = len(fields[4]), right.split()[0]
    return kind


def nearest_existing(path: Path) -> Path:
    """The path itself, or the closest directory above it that exists."""
    return next(place for place in (path, *path.parents) if place.is_dir())


def _lies_below(path: Path, mount_point: str) -> bool:
    return path.is_relative_to(mount_point.encode().decode("unicode_escape"))


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=directory, prefix=".probe-") as name:
        yield Path(name)


def _make_overlay_directories(place: Path) -> tuple[Path, Path, Path, Path]:
    found = (place / "lower", place / "upper", place / "work", place / "merged")
    for path in found:
        path.mkdir()
    return found


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["it failed without a word"])[-1]
