"""Staging: everything the store keeps is written here first and comes into being by one rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

_MODE_PRIVATE = 0o700
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def stage(staging: Path) -> Iterator[Path]:
    """A fresh directory below `staging`, gone after the block; what the block renames away stays."""
    place = staging / str(uuid.uuid4())
    place.mkdir(mode=_MODE_PRIVATE)
    try:
        yield place
    finally:
        remove_tree(place)


def remove_tree(path: Path) -> None:
    """Remove a directory tree of any depth; a missing one is no error. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        pending = _empty(path, path)
        while pending:
            directory = pending.pop()
            pending.extend(_empty(directory, path))
            directory.rmdir()
        path.rmdir()


def _empty(directory: Path, top: Path) -> list[Path]:
    """Remove a directory's entries, and move the directories among them to `top`, where they are reached by short
    paths and without recursion."""
    moved = []
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if not entry.is_dir(follow_symlinks=False):
                Path(entry.path).unlink()
            elif directory == top:
                moved.append(Path(entry.path))
            else:
                moved.append(Path(entry.path).rename(top / f".removed-{uuid.uuid4()}"))
    return moved


def commit(staged: Path, place: Path) -> None:
    """Give a staged directory its place: one rename, and the directory above it written out.

    Raises FileExistsError if it is taken.
    """
    try:
        staged.rename(place)
    except OSError as err:
        if err.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, "it is there already", str(place)) from err
        raise
    sync_directory(place.parent)


def sync_directory(path: Path) -> None:
    """Write out a directory's entries (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Write out a file (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(path: Path) -> None:
    """Write out everything of the file system that holds `path` (syncfs(2)): one call for a tree of many files."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"syncfs: {os.strerror(number)}", str(path))
    finally:
        os.close(fd)


def sweep(staging: Path) -> None:
    """Remove what a crash left in staging; called before anything is staged."""
    for entry in staging.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            entry.unlink()
