"""Small writes, and opening names inside a tree that is not trusted."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602  # linux/fs.h
_FS_TOPDIR_FL = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_inside(root: Path, name: str, flags: int) -> int | None:
    """Open a name below `root` as if that were `/` (openat2(2)); None if there is no such file, or none to be opened.

    Raises OSError for what is neither, a full disk for instance. The caller closes the descriptor.
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _OpenHow(flags=flags | os.O_CLOEXEC, resolve=_RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        size = ctypes.sizeof(how)
        fd = int(_libc.syscall(_SYS_OPENAT2, directory, os.fsencode(name.lstrip("/")), ctypes.byref(how), size))
    finally:
        os.close(directory)
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ETXTBSY):
        return None
    raise OSError(number, os.strerror(number), name)


def spread_directories(path: Path) -> None:
    """Let ext4 put each new directory in `path` into a block group of its own (chattr(1), `T`).

    ext4 passes over inodes that were deleted within the last minutes, one by one: where thousands were, making as many
    anew in the same group takes seconds. Other file systems have no such mark, and no such need.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = bytearray(struct.pack("l", 0))
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", struct.unpack("l", flags)[0] | _FS_TOPDIR_FL))
    except OSError as err:
        if err.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM):
            raise
    finally:
        os.close(fd)


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace a file's content and set its mode."""
    path.write_text(text)
    path.chmod(mode)
