"""Zeros take no room: holes in place of a file's zero blocks (fallocate(2), FALLOC_FL_PUNCH_HOLE).

CRIU leaves out pages that were never written, but stores those that a program filled with zeros. A hole reads as
zeros, so size, content and digest of a file stay as they are.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from runta.kernel.tree import copy_range

_BLOCK = 4096
_CHUNK = 1 << 20
_ZEROS = bytes(_BLOCK)
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch_zeros(path: Path) -> int:
    """Give a file's zero blocks back to the file system; how many bytes that were.

    0 where the file system has no holes. Raises OSError for any other failure.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    freed = 0
    try:
        for start, end, zero in _runs(fd):
            if zero and not _punch(fd, start, end - start):
                return 0
            freed += end - start if zero else 0
    finally:
        os.close(fd)
    return freed


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file's content to a new file on any file system, with holes in place of zero blocks."""
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(reader).st_size
            os.ftruncate(writer, size)
            for start, end, zero in _runs(reader):
                if not zero:
                    copy_range(reader, writer, start, end)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _runs(fd: int) -> Iterator[tuple[int, int, bool]]:
    """A file as runs of blocks, each (start, end, whether all of it is zeros); the last block may be short."""
    chunk = bytearray(_CHUNK)
    position, start, zero = 0, 0, False
    while length := os.preadv(fd, [chunk], position):
        for offset in range(0, length, _BLOCK):
            size = min(_BLOCK, length - offset)
            found = chunk.startswith(_ZEROS[:size], offset)
            if found != zero:
                if position + offset > start:
                    yield start, position + offset, zero
                start, zero = position + offset, found
        position += length
    if position > start:
        yield start, position, zero


def _punch(fd: int, start: int, length: int) -> bool:
    if _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, start, length) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(number, f"fallocate: {os.strerror(number)}")
