"""Unpacking a tar stream that nobody vouches for into a directory, and never outside of it.

Every name is resolved here, component by component, in a tree that only this process can reach: absolute names, `..`
and symlinks that lead out of the tree are refused, not repaired. `layered` archives (OCI image layers) carry whiteouts:
`.wh.X` hides X of the layers below, `.wh..wh..opq` everything in its directory (OCI image specification, layer.md).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import tarfile
from collections import deque
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import BinaryIO, Self

from runta.errors import InternalError, InvalidArgument, NoSpace, ServiceError
from runta.models import IdMap
from runta.store.acl import ACL_ACCESS, ACL_DEFAULT, encode_acl

logger = logging.getLogger(__name__)

_MODE_DIRECTORY = 0o755
_MODE_NEW = 0o600
_MODE_BITS = 0o7777
_MAX_LINKS = 40
_CHUNK = 1 << 20
_HOLE = 1 << 16
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."
_XATTR = "SCHILY.xattr."
_TEXT_ACLS = {"SCHILY.acl.access": ACL_ACCESS, "SCHILY.acl.default": ACL_DEFAULT}
_KEPT_XATTRS = frozenset({"security.capability", ACL_ACCESS, ACL_DEFAULT})
_MAX_ID = IdMap(start=0).size

Parts = tuple[str, ...]


class Unpacker:
    """One tree being filled. Use it as a context manager; call `unpack` once for each archive, oldest layer first."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fd = -1
        self._known: dict[Parts, Parts] = {}
        """Directory names already resolved; emptied whenever something is removed."""
        self._fresh: set[Parts] = set()
        """What this layer has made, which its own whiteouts do not hide."""
        self._times: dict[Parts, int] = {}
        """Modification times of directories, set when nothing is put into them any more."""
        self.skipped: list[str] = []
        """Device nodes that were left out."""

    def __enter__(self) -> Self:
        self._fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def unpack(self, stream: BinaryIO, *, layered: bool) -> int:
        """Unpack one archive; returns how many entries it had.

        Raises InvalidArgument naming the entry that is refused, NoSpace, or InternalError.
        """
        self._fresh.clear()
        self._times.clear()
        count = 0
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                count += 1
                try:
                    self._add(tar, member, layered)
                except OSError as err:
                    raise explain(err, member.name) from err
                tar.members = []  # type: ignore[attr-defined]  # a stream's past members are of no use, only of size
        self._set_directory_times()
        return count

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, layered: bool) -> None:
        parts = split_name(member.name)
        if not parts:
            return  # the root itself keeps the mode it has
        if layered and parts[-1].startswith(_WHITEOUT):
            self._whiteout(parts)
            return
        if member.ischr() or member.isblk():
            self.skipped.append(member.name)
            return
        place = (*self.resolve(parts[:-1], member.name), parts[-1])
        if member.isdir():
            self._make_directory(place)
        else:
            self.remove(place)
            self._make_file(tar, member, place)
        self._mark(place)
        if not member.islnk():
            self._set_metadata(member, place)

    def _make_directory(self, place: Parts) -> None:
        info = self.lstat(place)
        if info is not None and not stat.S_ISDIR(info.st_mode):
            self.remove(place)
            info = None
        if info is None:
            os.mkdir(_join(place), _MODE_DIRECTORY, dir_fd=self._fd)

    def _make_file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, place: Parts) -> None:
        path = _join(place)
        if member.issym():
            os.symlink(member.linkname, path, dir_fd=self._fd)
        elif member.islnk():
            self._link(member, path)
        elif member.isfifo():
            os.mkfifo(path, _MODE_NEW, dir_fd=self._fd)
        elif member.isreg():
            self._write(tar, member, path)
        else:
            raise InvalidArgument(
                f"can't unpack {member.name!r}",
                cause=f"an entry of type {member.type!r}",
                hint="pack the tree with GNU tar",
            )

    def _link(self, member: tarfile.TarInfo, path: str) -> None:
        parts = split_name(member.linkname, of=member.name)
        if not parts:
            raise _refuse(member.name, "it is a hard link to the root directory")
        source = (*self.resolve(parts[:-1], member.name, make=False), parts[-1])
        info = self.lstat(source)
        if info is None or stat.S_ISDIR(info.st_mode):
            reason = "does not exist in the archive before it" if info is None else "is a directory"
            raise _refuse(member.name, f"it is a hard link to {member.linkname!r}, which {reason}")
        os.link(_join(source), path, src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)

    def _write(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        reader = tar.extractfile(member)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, _MODE_NEW, dir_fd=self._fd), "wb", buffering=0) as writer:
            left = member.size
            while reader is not None and left > 0 and (piece := reader.read(min(left, _CHUNK))):
                left -= len(piece)
                _write_piece(writer.fileno(), piece, sparse=member.issparse())
            if left > 0:
                raise tarfile.ReadError("unexpected end of data")
            writer.truncate(member.size)

    def _set_metadata(self, member: tarfile.TarInfo, place: Parts) -> None:
        """Owner, then mode, then xattrs: chown(2) clears setuid bits and file capabilities."""
        if not (0 <= member.uid < _MAX_ID and 0 <= member.gid < _MAX_ID):
            raise _refuse(
                member.name,
                f"its owner {member.uid}:{member.gid} is outside of 0 to {_MAX_ID - 1}, which a runtime has",
            )
        path = _join(place)
        os.chown(path, member.uid, member.gid, dir_fd=self._fd, follow_symlinks=False)
        if not member.issym():
            os.chmod(path, member.mode & _MODE_BITS, dir_fd=self._fd)
            for name, value in _read_xattrs(member):
                os.setxattr(f"/proc/self/fd/{self._fd}/{path}", name, value, follow_symlinks=False)
        moment = _read_mtime(member)
        if member.isdir():
            self._times[place] = moment
        else:
            os.utime(path, ns=(moment, moment), dir_fd=self._fd, follow_symlinks=False)

    def _set_directory_times(self) -> None:
        for place, moment in self._times.items():
            info = self.lstat(place)
            if info is not None and stat.S_ISDIR(info.st_mode):
                os.utime(_join(place), ns=(moment, moment), dir_fd=self._fd, follow_symlinks=False)

    def _whiteout(self, parts: Parts) -> None:
        folder = self._resolve_existing(parts[:-1])
        if folder is None:
            return
        if parts[-1] == _OPAQUE:
            for name in self._list(folder):
                self._hide((*folder, name))
            return
        hidden = parts[-1].removeprefix(_WHITEOUT)
        if parts[-1].startswith(_AUFS):
            return  # bookkeeping of aufs, no whiteout
        if hidden in ("", ".", ".."):
            raise _refuse("/".join(parts), "it hides nothing that could exist")
        self._hide((*folder, hidden))

    def _resolve_existing(self, parts: Parts) -> Parts | None:
        try:
            return self.resolve(parts, "/".join(parts), make=False)
        except FileNotFoundError:
            return None

    def _list(self, folder: Parts) -> Sequence[str]:
        fd = os.open(_join(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            return os.listdir(fd)  # noqa: PTH208
        finally:
            os.close(fd)

    def _hide(self, place: Parts) -> None:
        """Remove what lower layers have here; what this layer itself has made stays."""
        info = self.lstat(place)
        if info is None:
            return
        if place not in self._fresh:
            self.remove(place)
        elif stat.S_ISDIR(info.st_mode):
            for name in self._list(place):
                self._hide((*place, name))

    def resolve(self, parts: Parts, name: str, *, make: bool = True) -> Parts:
        """The real place of a directory in the tree. Missing ones are made, or raise FileNotFoundError."""
        if parts in self._known:
            return self._known[parts]
        place: list[str] = []
        pending = deque(parts)
        links = 0
        while pending:
            part = pending.popleft()
            if part == "..":
                if not place:
                    raise _refuse(name, "a symlink on its way leads out of the tree")
                place.pop()
                continue
            target = self._enter((*place, part), name, make)
            if target is None:
                place.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise _refuse(name, "there is a loop of symlinks on its way")
            if target.startswith("/"):
                raise _refuse(
                    name, f"its way leads through the absolute symlink {'/'.join((*place, part))!r} → {target!r}"
                )
            pending.extendleft(reversed([step for step in target.split("/") if step not in ("", ".")]))
        self._known[parts] = tuple(place)
        return tuple(place)

    def _enter(self, place: Parts, name: str, make: bool) -> str | None:
        """Make sure of a directory; the target if a symlink stands there."""
        info = self.lstat(place)
        if info is None:
            if not make:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _join(place))
            os.mkdir(_join(place), _MODE_DIRECTORY, dir_fd=self._fd)
            self._mark(place)
        elif stat.S_ISLNK(info.st_mode):
            return os.readlink(_join(place), dir_fd=self._fd)
        elif not stat.S_ISDIR(info.st_mode):
            raise _refuse(name, f"{_join(place)!r} on its way is not a directory")
        return None

    def _mark(self, place: Parts) -> None:
        """Remember a name and those above it as this layer's."""
        while place and place not in self._fresh:
            self._fresh.add(place)
            place = place[:-1]

    def lstat(self, place: Parts) -> os.stat_result | None:
        """What stands at a resolved place."""
        try:
            return os.stat(_join(place), dir_fd=self._fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def remove(self, place: Parts) -> None:
        """Remove what stands at a resolved place, a directory with all it holds."""
        info = self.lstat(place)
        if info is None:
            return
        self._known.clear()
        if stat.S_ISDIR(info.st_mode):
            shutil.rmtree(_join(place), dir_fd=self._fd)
        else:
            os.unlink(_join(place), dir_fd=self._fd)


def split_name(name: str, of: str | None = None) -> Parts:
    """A name of an archive as components. Raises InvalidArgument where it is absolute or climbs."""
    if name.startswith("/"):
        raise _refuse(of or name, f"{name!r} is absolute")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise _refuse(of or name, f"{name!r} climbs with `..`")
    return parts


def _join(place: Iterable[str]) -> str:
    return "/".join(place) or "."


def _write_piece(fd: int, piece: bytes, *, sparse: bool) -> None:
    """Write, leaving holes where a sparse file holds zeros."""
    view = memoryview(piece)
    while view:
        block = view[:_HOLE] if sparse else view
        if sparse and not any(block):
            os.lseek(fd, len(block), os.SEEK_CUR)
            view = view[len(block) :]
        else:
            view = view[os.write(fd, block) :]


def _read_mtime(member: tarfile.TarInfo) -> int:
    """Nanoseconds; a PAX header has them in full."""
    text = member.pax_headers.get("mtime")
    try:
        return int(Decimal(text) * 1_000_000_000) if text else int(member.mtime) * 1_000_000_000
    except InvalidOperation:
        return int(member.mtime) * 1_000_000_000


def _read_xattrs(member: tarfile.TarInfo) -> list[tuple[str, bytes]]:
    """The extended attributes an image keeps: user.*, file capabilities, ACLs. Marks of an overlay are none of them."""
    found: dict[str, bytes] = {}
    for key, value in member.pax_headers.items():
        if key.startswith(_XATTR):
            name = key.removeprefix(_XATTR)
            if name.startswith("user.") or name in _KEPT_XATTRS:
                found[name] = value.encode("utf-8", "surrogateescape")
        elif key in _TEXT_ACLS:
            found.setdefault(_TEXT_ACLS[key], encode_acl(value, member.name))
    return list(found.items())


def _refuse(name: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"the archive's entry {name!r} was refused",
        cause=reason,
        hint="make the archive anew: tar -C ROOTFS -cf FILE .",
    )


def explain(err: OSError, name: str) -> ServiceError:
    """What a failure while making `name` means."""
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            f"no space for {name!r}", cause=err.strerror, hint="make room in the state directory and try again"
        )
    if err.errno == errno.EOPNOTSUPP:
        return InternalError(
            f"can't keep the attributes of {name!r}",
            cause=str(err),
            hint="put the state directory on ext4, xfs or btrfs",
        )
    if err.errno == errno.EPERM:
        return InternalError(f"not allowed to make {name!r}", cause=str(err), hint="the service has to run as root")
    if err.errno is None:
        return InvalidArgument("the archive is damaged", cause=str(err), hint="fetch or make it again")
    return InternalError(f"can't unpack {name!r}", cause=str(err))
