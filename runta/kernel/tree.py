"""Copying directory trees completely: whiteouts, opaque marks, xattrs, ACLs, hard links, holes, nanosecond times.

A captured upper dir holds shifted ids, a layer plain ones. Source for whiteouts: the kernel's overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from runta.kernel.walk import walk_tree
from runta.kernel.xattrs import is_kept, shift_xattr, unshift

_FICLONE = 0x40049409
_CHUNK = 1 << 30
LINK_REMAP = "link_remap."
"""How CRIU names an open file whose own name is gone, while it dumps (criu, files-reg.c)."""


def link_file(source: Path, target: Path) -> bool:
    """Make `target` another name of a file, a symbolic link or a device; False if the file can't have one there."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as err:
        if err.errno in (errno.EMLINK, errno.EXDEV):
            return False
        raise
    return True


def copy_file(source: Path, target: Path, info: os.stat_result, *, shift: int) -> None:
    """Copy what is no directory, with its metadata; `info` is the source's."""
    if stat.S_ISREG(info.st_mode):
        copy_content(source, target, info.st_size)
    elif stat.S_ISLNK(info.st_mode):
        target.symlink_to(source.readlink())
    else:
        os.mknod(target, info.st_mode, info.st_rdev)
    copy_metadata(source, target, shift=shift)


def copy_content(source: Path, target: Path, size: int) -> None:
    """Copy a regular file's content: a reflink where the file system can, else its data with the holes kept."""
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        copy_data(reader.fileno(), writer.fileno(), size)


def copy_data(reader: int, writer: int, size: int) -> None:
    """The same between descriptors; `writer` is an empty file."""
    if size == 0 or _reflink(reader, writer):
        return
    for start, end in _data_ranges(reader, size):
        copy_range(reader, writer, start, end)
    os.ftruncate(writer, size)


def _reflink(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError as err:
        if err.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL):
            return False
        raise
    return True


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file holds data (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, min(end, size)


def copy_range(reader: int, writer: int, start: int, end: int) -> None:
    """Copy a part of a file to the same place of another, inside the kernel."""
    while start < end:
        count = _copy_piece(reader, writer, start, min(end - start, _CHUNK))
        if count == 0:
            return
        start += count


def _copy_piece(reader: int, writer: int, start: int, count: int) -> int:
    """Copy inside the kernel: between file systems of two kinds copy_file_range(2) is refused."""
    try:
        return os.copy_file_range(reader, writer, count, start, start)
    except OSError as err:
        if err.errno not in (errno.EXDEV, errno.EOPNOTSUPP):
            raise
    os.lseek(writer, start, os.SEEK_SET)
    return os.sendfile(writer, reader, start, count)


def copy_metadata(source: Path, target: Path, *, shift: int) -> None:
    """Owner, mode, xattrs and times, in the order in which none undoes another.

    What the target is decides whether it has a mode: a live source may have been replaced, and no link is followed.
    """
    info = source.lstat()
    os.chown(target, unshift(info.st_uid, shift), unshift(info.st_gid, shift), follow_symlinks=False)
    if not stat.S_ISLNK(target.lstat().st_mode):
        target.chmod(stat.S_IMODE(info.st_mode))
    for name in os.listxattr(source, follow_symlinks=False):
        if is_kept(name):
            value = shift_xattr(name, os.getxattr(source, name, follow_symlinks=False), shift)
            _set_xattr(target, name, value)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)


def copy_attributes(source: int, target: int, info: os.stat_result, *, shift: int, renew: bool = False) -> None:
    """Owner, mode, xattrs and times of what is behind a descriptor; `info` is the source's state.

    `renew`: the target is no new file, and xattrs that the source has no more are removed.
    """
    os.chown(target, unshift(info.st_uid, shift), unshift(info.st_gid, shift))
    os.chmod(target, stat.S_IMODE(info.st_mode))
    kept = {name for name in os.listxattr(source) if is_kept(name)}
    for name in set(os.listxattr(target)) - kept if renew else ():
        os.removexattr(target, name)
    for name in kept:
        os.setxattr(target, name, shift_xattr(name, os.getxattr(source, name), shift))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _set_xattr(target: Path, name: str, value: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.setxattr(target, name, value, follow_symlinks=False)


def is_whiteout(info: os.stat_result) -> bool:
    """Whether an entry of an upper dir or layer says that a name is gone (a 0:0 character device)."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def find_hard_links(tree: Path) -> list[list[str]]:
    """Groups of names of one file in a tree that stands still."""
    names: dict[int, list[str]] = {}
    for name, info in walk_tree(tree):
        if stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
            names.setdefault(info.st_ino, []).append(name)
    return [group for group in names.values() if len(group) > 1]
