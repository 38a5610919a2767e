"""Walking trees that are deeper than a path may be long (PATH_MAX, 4096 bytes with the final NUL: limits.h), and than
Python may recurse.

A program makes such a tree by creating a directory and changing into it, again and again. Extended attributes can't be
read or written relative to a directory descriptor, but any call takes a path through /proc/self/fd (proc(5)).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST = 3500
"""Bytes of a path that leave room for one more name (255 bytes) below it, and for the root's own path."""


@contextlib.contextmanager
def reach(root: Path, name: str) -> Iterator[Path]:
    """A path of `name`, relative to `root` ("" is the root itself), that is short enough to use while the block runs.

    The name's directories are no symbolic links: the caller found them by walking a tree that stands still. Only the
    root's own path has to be short. Raises OSError if a directory above the name is missing.
    """
    if len(os.fsencode(name)) <= _LONGEST:
        yield root / name
        return
    above, _, last = name.rpartition("/")
    fd = _open_directory(root, above)
    try:
        yield Path(f"/proc/self/fd/{fd}/{last}")
    finally:
        os.close(fd)


def walk_tree(tree: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below a tree that stands still: relative name and lstat(2). No link is followed."""
    pending = [""]
    while pending:
        above = pending.pop()
        with reach(tree, above) as directory, os.scandir(directory) as entries:
            for entry in entries:
                name = f"{above}/{entry.name}" if above else entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name)
                yield name, entry.stat(follow_symlinks=False)


def _open_directory(root: Path, name: str) -> int:
    """A descriptor of a directory, opened piece by piece. The caller closes it."""
    fd = os.open(root, _DIRECTORY)
    try:
        for piece in _pieces(name):
            below = os.open(piece, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
    except OSError:
        os.close(fd)
        raise
    return fd


def _pieces(name: str) -> Iterator[str]:
    """A long name as names that are short enough, in their order."""
    piece = ""
    for part in name.split("/"):
        if len(os.fsencode(piece)) + len(os.fsencode(part)) > _LONGEST:
            yield piece
            piece = ""
        piece = f"{piece}/{part}" if piece else part
    yield piece
