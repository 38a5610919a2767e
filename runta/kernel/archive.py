"""Archives: layers packed with GNU tar and zstd; trees of a runtime as tar streams.

A runtime's tree is not trusted: it is walked from a directory descriptor, one component at a time, and no symbolic
link is ever followed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from runta.errors import InvalidArgument
from runta.kernel.process import run
from runta.kernel.walk import walk_tree

_TIMEOUT = 3600.0
_MODE_DIRECTORY = 0o755
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Readable(Protocol):
    """What a tar is read from."""

    def read(self, size: int = -1, /) -> bytes: ...


def pack_tree(tree: Path, target: Path) -> list[str]:
    """Write a directory tree as a compressed tar: whiteouts, xattrs, ACLs, hard links, holes, nanosecond times.

    Unpack it with `tar --xattrs --xattrs-include='*' --numeric-owner -xpf`. ACLs go as the xattrs they are: `--acls`
    would write this host's user names into them. Left out are sockets, which a tar can't hold: their names, relative
    and sorted, are the answer. Names longer than a path may be (4096 bytes) are packed, but GNU tar does not unpack
    them. Raises KernelError, and OSError if the tree can't be read.
    """
    keep = ("--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sparse", "--sort=name")
    threads = min(4, os.cpu_count() or 1)
    run(("tar", "-C", tree, *keep, "-I", f"zstd -q -3 -T{threads}", "-cf", target, "."), timeout=_TIMEOUT)
    return sorted(name for name, info in walk_tree(tree) if stat.S_ISSOCK(info.st_mode))


def pack_directory(fd: int, name: str, writer: int, *, shift: int) -> None:
    """Write what `fd` is (a file or a directory) to the pipe `writer` as a tar, with `shift` subtracted from the ids.

    Closes `writer`. Stays on one file system. Raises BrokenPipeError if the reader went away.
    """
    with os.fdopen(writer, "wb") as sink, tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        info = os.fstat(fd)
        _pack(archive, os.dup(fd), info, name, shift, {}, info.st_dev)


def _pack(
    archive: tarfile.TarFile, fd: int, info: os.stat_result, name: str, shift: int, seen: dict[int, str], device: int
) -> None:
    """Add the file or directory behind `fd`, which is closed."""
    try:
        member = _describe(info, name, shift)
        if stat.S_ISDIR(info.st_mode):
            archive.addfile(member)
            for child in sorted(os.listdir(fd)):
                _pack_child(archive, fd, child, f"{name}/{child}", shift, seen, device)
        elif info.st_nlink > 1 and info.st_ino in seen:
            member.type, member.linkname, member.size = tarfile.LNKTYPE, seen[info.st_ino], 0
            archive.addfile(member)
        else:
            seen[info.st_ino] = name
            with os.fdopen(os.dup(fd), "rb") as content:
                archive.addfile(member, content)
    finally:
        os.close(fd)


def _pack_child(
    archive: tarfile.TarFile, parent: int, child: str, name: str, shift: int, seen: dict[int, str], device: int
) -> None:
    """Add one entry of a directory; one that vanished meanwhile, sockets, devices and other mounts are left out."""
    with contextlib.suppress(FileNotFoundError):
        info = os.stat(child, dir_fd=parent, follow_symlinks=False)
        if info.st_dev != device and stat.S_ISDIR(info.st_mode):
            return
        if stat.S_ISLNK(info.st_mode):
            member = _describe(info, name, shift)
            member.linkname = os.readlink(child, dir_fd=parent)
            archive.addfile(member)
        elif stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode):
            fd = os.open(child, _READ, dir_fd=parent)
            _pack(archive, fd, os.fstat(fd), name, shift, seen, device)
        elif stat.S_ISFIFO(info.st_mode):
            archive.addfile(_describe(info, name, shift))


def _describe(info: os.stat_result, name: str, shift: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    kinds = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}
    member.type = kinds.get(stat.S_IFMT(info.st_mode), tarfile.REGTYPE)
    member.mode = stat.S_IMODE(info.st_mode)
    member.mtime = info.st_mtime
    member.uid, member.gid = max(0, info.st_uid - shift), max(0, info.st_gid - shift)
    member.size = info.st_size if member.type == tarfile.REGTYPE else 0
    return member


def unpack_directory(source: Readable, root: int, *, shift: int) -> None:
    """Unpack a tar into the directory behind `root`; everything belongs to the inside's root.

    Raises InvalidArgument for what is no tar, or a name that climbs out.
    """
    try:
        with tarfile.open(fileobj=source, mode="r|*") as archive:  # type: ignore[call-overload]  # it reads, no more
            for member in archive:
                _unpack(archive, member, root, shift)
    except tarfile.TarError as err:
        raise InvalidArgument("this is not a tar stream", cause=str(err)) from err


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, root: int, shift: int) -> None:
    parts = _split(member.name)
    if not parts:
        return
    with _parent(root, parts[:-1], shift) as parent:
        name = parts[-1]
        if member.isdir():
            _make_directory(parent, name, shift, member.mode)
            return
        _remove(parent, name)
        if member.isreg():
            _write_file(archive, member, parent, name, shift)
        elif member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
            os.chown(name, shift, shift, dir_fd=parent, follow_symlinks=False)
        elif member.islnk():
            target = _split(member.linkname)
            with _parent(root, target[:-1], shift) as other:
                os.link(target[-1], name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
        elif member.isfifo():
            os.mkfifo(name, member.mode, dir_fd=parent)
            os.chown(name, shift, shift, dir_fd=parent, follow_symlinks=False)


def _split(name: str) -> tuple[str, ...]:
    """A member's name as components. Raises InvalidArgument if it leads out of the archive."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InvalidArgument(f"the archive holds a name that leads out of it: {name[:200]!r}")
    return tuple(part for part in path.parts if part != ".")


@contextlib.contextmanager
def _parent(root: int, parts: tuple[str, ...], shift: int) -> Iterator[int]:
    """The directory of a member, made where it is missing."""
    fd = os.dup(root)
    try:
        for part in parts:
            _make_directory(fd, part, shift, None)
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    except NotADirectoryError as err:
        raise InvalidArgument(
            f"{'/'.join(parts)[:200]} is not a directory in the runtime", hint="unpack elsewhere"
        ) from err
    finally:
        os.close(fd)


def _make_directory(parent: int, name: str, shift: int, mode: int | None) -> None:
    try:
        os.mkdir(name, _MODE_DIRECTORY if mode is None else mode, dir_fd=parent)
    except FileExistsError:
        return
    os.chown(name, shift, shift, dir_fd=parent, follow_symlinks=False)
    if mode is not None:
        os.chmod(name, mode, dir_fd=parent)


def _remove(parent: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)


def _write_file(archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str, shift: int) -> None:
    content = archive.extractfile(member)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=parent)
    with os.fdopen(fd, "wb") as file:
        while content is not None and (piece := content.read(1 << 20)):
            file.write(piece)
        file.flush()
        os.fchown(fd, shift, shift)
        os.fchmod(fd, member.mode & 0o7777)
        os.utime(fd, (member.mtime, member.mtime))
