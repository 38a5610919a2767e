"""Tar streams: packing local trees, and unpacking a stranger's archive so that it can't write elsewhere."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from runta.errors import ApiError

CHUNK = 1 << 18
Filter = Callable[[tarfile.TarInfo, str], tarfile.TarInfo | None]
"""As `tarfile` calls it: member and destination; None leaves the member out."""
CONTENT = "content"


def pack_tree(source: Path, name: str) -> Iterator[bytes]:
    """A tar stream of a file, or of a directory and all below, called `name` in it. Everything belongs to root.

    Raises OSError for what can't be read. Sockets, pipes and devices are left out.
    """
    helper = tarfile.open(fileobj=io.BytesIO(), mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - holds no file
    for path, member_name in _walk(source, name):
        info = helper.gettarinfo(path, member_name)
        if info is None or not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
            continue
        yield from _member(_owned_by_root(info), path)
    yield bytes(2 * tarfile.BLOCKSIZE)


def pack_bytes(content: bytes, name: str, mode: int) -> Iterator[bytes]:
    """A tar stream of one file."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    yield info.tobuf(tarfile.PAX_FORMAT) + content + _padding(info.size)
    yield bytes(2 * tarfile.BLOCKSIZE)


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A place to unpack into, beside the destination; what is left there at the end is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".runta-", dir=parent) as stage:
        yield Path(stage) / CONTENT


def unpack(
    pieces: Iterable[bytes],
    content: Path,
    *,
    choose: Filter | None = None,
    only: str | None = None,
) -> None:
    """Unpack an archive of one file or directory as `content`; with `only` just its first member, as `content/<only>`.

    Raises ApiError for a member that leads out of the archive's tree, and for special files.
    """
    try:
        with tarfile.open(fileobj=_Reader(pieces), mode="r|") as archive:
            for member in archive:
                relative = _below_root(member.name) if only is None else only
                _unpack_member(archive, member, relative, content, choose)
                if only is not None:
                    return
    except (tarfile.TarError, KeyError) as err:
        raise ApiError(
            f"the archive can't be unpacked here\nwhy: {err}\n"
            "what to do: take it as a tar stream and unpack it with a tool of your choice"
        ) from err


def first_member(pieces: Iterable[bytes]) -> tarfile.TarInfo | None:
    """What an archive begins with."""
    with tarfile.open(fileobj=_Reader(pieces), mode="r|") as archive:
        return archive.next()


def settle(staged: Path, target: Path) -> None:
    """Move what was unpacked to its place: files replace files, directories merge into directories.

    Raises OSError where a file would replace a directory or the other way round.
    """
    if staged.is_dir() and not staged.is_symlink() and target.is_dir():
        for child in sorted(staged.iterdir()):
            settle(child, target / child.name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    staged.replace(target)


class _Reader(io.RawIOBase):
    """Pieces as a file to read from."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = memoryview(next(filter(None, self._pieces), b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _walk(source: Path, name: str) -> Iterator[tuple[Path, str]]:
    yield source, name
    if source.is_dir() and not source.is_symlink():
        for child in sorted(source.iterdir()):
            yield from _walk(child, f"{name}/{child.name}")


def _member(info: tarfile.TarInfo, path: Path) -> Iterator[bytes]:
    yield info.tobuf(tarfile.PAX_FORMAT)
    if not info.isreg():
        return
    left = info.size
    with path.open("rb") as file:
        while left:
            piece = file.read(min(CHUNK, left))
            if not piece:
                raise OSError(f"{path} became shorter while it was read")
            left -= len(piece)
            yield piece
    if padding := _padding(info.size):
        yield padding


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def _unpack_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, relative: str, content: Path, choose: Filter | None
) -> None:
    """With the root's name replaced by `content`; `data_filter` has the last word."""
    stage = content.parent
    if relative and choose is not None:
        chosen = choose(member.replace(name=relative, deep=False), str(content))
        if chosen is None:
            return
        member, relative = chosen, chosen.name
    name = f"{content.name}/{relative}" if relative else content.name
    linkname = f"{content.name}/{_below_root(member.linkname)}" if member.islnk() else member.linkname
    member = tarfile.data_filter(member.replace(name=name, linkname=linkname, deep=False), str(stage))
    _refuse_links_on_the_way(stage, member.name)
    if member.islnk():
        _refuse_links_on_the_way(stage, member.linkname)
    archive.extract(member, stage, filter="fully_trusted")


def _below_root(name: str) -> str:
    """`project/src/a` is `src/a` of what was asked for."""
    return "/".join(PurePosixPath(name).parts[1:])


def _refuse_links_on_the_way(stage: Path, name: str) -> None:
    """No packer writes members below a link; an archive that does wants to be led elsewhere."""
    place = os.fspath(stage)
    for part in PurePosixPath(name).parts[:-1]:
        place = os.path.join(place, part)  # noqa: PTH118 - no resolving
        if os.path.islink(place):  # noqa: PTH114
            raise tarfile.ExtractError(f"{name} lies below a symbolic link")
