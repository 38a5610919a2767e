"""Copying directory trees completely: whiteouts, opaque marks, xattrs, ACLs, hard links, holes, nanosecond times.

A captured upper dir holds shifted ids, a layer plain ones; they stand in owners, in POSIX ACLs and in file capabilities
(linux/posix_acl_xattr.h, linux/capability.h). Sources for the overlay's marks: the kernel's overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_FICLONE = 0x40049409
_CHUNK = 1 << 30
LINK_REMAP = "link_remap."
"""How CRIU names an open file whose own name is gone, while it dumps (criu, files-reg.c)."""
_OVERLAY = "trusted.overlay."
# The others name inodes of the source's file systems (origin, upper, uuid), or are the kernel's own bookkeeping.
_OVERLAY_KEPT = frozenset({"opaque", "redirect", "xwhiteouts", "protattr"})
_ACLS = frozenset({"system.posix_acl_access", "system.posix_acl_default"})
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_CAPABILITY = "security.capability"
_CAP_REVISION_MASK, _CAP_REVISION_2, _CAP_REVISION_3 = 0xFF000000, 0x02000000, 0x03000000


@dataclass(slots=True)
class Copied:
    """What a copy holds."""

    names: dict[int, list[str]] = field(default_factory=dict)
    """Inode of the source → its names, relative: every regular file, so that hard links and link remaps are found."""
    files: int = 0
    size: int = 0
    """Bytes of regular files."""

    @property
    def hard_links(self) -> list[list[str]]:
        """Names that are one file."""
        return [names for names in self.names.values() if len(names) > 1]


def copy_tree(source: Path, target: Path, *, shift: int) -> Copied:
    """Copy a directory tree that stands still to `target`, which must not exist, subtracting `shift` from every id.

    CRIU's link remaps come and go in the source during a dump; one that vanishes is no error. Raises OSError.
    """
    copied = Copied()
    target.mkdir()
    _copy_directory(source, target, "", shift, copied)
    copy_metadata(source, target, shift=shift)
    return copied


def _copy_directory(source: Path, target: Path, prefix: str, shift: int, copied: Copied) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            try:
                _copy_entry(entry, target / entry.name, f"{prefix}{entry.name}", shift, copied)
            except FileNotFoundError:
                if not entry.name.startswith(LINK_REMAP):
                    raise


def _copy_entry(entry: os.DirEntry[str], target: Path, name: str, shift: int, copied: Copied) -> None:
    source = Path(entry.path)
    info = entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(info.st_mode):
        target.mkdir()
        _copy_directory(source, target, f"{name}/", shift, copied)
        copy_metadata(source, target, shift=shift)
        return
    if stat.S_ISREG(info.st_mode):
        names = copied.names.setdefault(info.st_ino, [])
        names.append(name)
        if len(names) > 1:
            target.hardlink_to(_root_of(target, name) / names[0])
            return
        copy_content(source, target, info.st_size)
        copied.files += 1
        copied.size += info.st_size
    elif stat.S_ISLNK(info.st_mode):
        target.symlink_to(source.readlink())
    else:
        os.mknod(target, info.st_mode, info.st_rdev)
    copy_metadata(source, target, shift=shift)


def _root_of(path: Path, name: str) -> Path:
    """The tree's root: `path` without its relative `name`."""
    return path.parents[name.count("/")]


def copy_content(source: Path, target: Path, size: int) -> None:
    """Copy a regular file's content: a reflink where the file system can, else its data with the holes kept."""
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        copy_data(reader.fileno(), writer.fileno(), size)


def copy_data(reader: int, writer: int, size: int) -> None:
    """The same between descriptors; `writer` is an empty file."""
    if size == 0 or _reflink(reader, writer):
        return
    for start, end in _data_ranges(reader, size):
        _copy_range(reader, writer, start, end)
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


def _copy_range(reader: int, writer: int, start: int, end: int) -> None:
    while start < end:
        count = os.copy_file_range(reader, writer, min(end - start, _CHUNK), start, start)
        if count == 0:
            return
        start += count


def copy_metadata(source: Path, target: Path, *, shift: int) -> None:
    """Owner, mode, xattrs and times, in the order in which none undoes another."""
    info = source.lstat()
    os.chown(target, _unshift(info.st_uid, shift), _unshift(info.st_gid, shift), follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
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
    os.chown(target, _unshift(info.st_uid, shift), _unshift(info.st_gid, shift))
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


def is_kept(name: str) -> bool:
    """Whether an xattr belongs to the tree's content rather than to one mount's bookkeeping."""
    return not name.startswith(_OVERLAY) or name.removeprefix(_OVERLAY) in _OVERLAY_KEPT


def shift_xattr(name: str, value: bytes, shift: int) -> bytes:
    """The xattr with `shift` subtracted from every id in it."""
    if name in _ACLS:
        return _shift_acl(value, shift)
    if name == _CAPABILITY:
        return _shift_capability(value, shift)
    return value


def _shift_acl(value: bytes, shift: int) -> bytes:
    """Each entry after the 4-byte version: tag, permissions, id (u16, u16, u32; only named users and groups have an
    id)."""
    shifted = bytearray(value)
    for offset in range(4, len(value) - 7, 8):
        tag, permissions, number = struct.unpack_from("<HHI", value, offset)
        if tag in (_ACL_USER, _ACL_GROUP):
            struct.pack_into("<HHI", shifted, offset, tag, permissions, _unshift(number, shift))
    return bytes(shifted)


def _shift_capability(value: bytes, shift: int) -> bytes:
    """A capability set by the root of a user namespace names that root (revision 3); a plain one does not (revision
    2)."""
    (magic,) = struct.unpack_from("<I", value)
    if magic & _CAP_REVISION_MASK != _CAP_REVISION_3 or len(value) < 24:
        return value
    (root,) = struct.unpack_from("<I", value, 20)
    if root == shift:
        return struct.pack("<I", magic & ~_CAP_REVISION_MASK | _CAP_REVISION_2) + value[4:20]
    return value[:20] + struct.pack("<I", _unshift(root, shift))


def _unshift(number: int, shift: int) -> int:
    """The id inside; one below the range belongs to the host and stays what it is."""
    return number - shift if number >= shift else number


def is_whiteout(info: os.stat_result) -> bool:
    """Whether an entry of an upper dir or layer says that a name is gone (a 0:0 character device)."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def find_hard_links(tree: Path) -> list[list[str]]:
    """Groups of names of one file in a tree that stands still."""
    names: dict[int, list[str]] = {}
    for directory, _, files in os.walk(tree):
        for name in files:
            path = Path(directory, name)
            info = path.lstat()
            if stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
                names.setdefault(info.st_ino, []).append(str(path.relative_to(tree)))
    return [group for group in names.values() if len(group) > 1]
