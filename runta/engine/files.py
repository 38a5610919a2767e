"""Files of a runtime: every name is resolved by the guest init, inside; the service works on the descriptor it gets."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator
from pathlib import PurePosixPath

from runta.engine.box import Box
from runta.engine.core import Core
from runta.engine.feed import Feed, run_apart
from runta.engine.idle import Idle
from runta.engine.journal import Note, shorten
from runta.errors import FailedPrecondition, InvalidArgument, NoSpace, NotFound, PermissionDenied, ServiceError
from runta.kernel.archive import pack_directory, unpack_directory

CHUNK = 256 << 10
_MODE_FILE = 0o644


class Files:
    """Reading and writing, one file or a whole tree."""

    def __init__(self, core: Core, idle: Idle) -> None:
        self._core = core
        self._idle = idle

    async def read(self, ref: str, path: str) -> AsyncIterator[bytes]:
        """The content of a regular file."""
        async with self._idle.using(ref) as (runtime, box):
            with self._core.journal.recording("file.read", runtime, path=shorten(path)) as note:
                fd = await _open(box, path, os.O_RDONLY)
                try:
                    if not stat.S_ISREG(os.fstat(fd).st_mode):
                        raise InvalidArgument(f"{path} is not a regular file")
                    async for piece in _pieces(fd, note):
                        yield piece
                finally:
                    os.close(fd)

    async def write(self, ref: str, path: str, content: AsyncIterator[bytes], *, mode: int = _MODE_FILE) -> None:
        """Replace a file's content; its directories are made if missing."""
        async with self._idle.using(ref) as (runtime, box):
            with self._core.journal.recording("file.write", runtime, path=shorten(path)) as note:
                fd = await self._open_for_writing(box, path, mode)
                try:
                    if not stat.S_ISREG(os.fstat(fd).st_mode):
                        raise InvalidArgument(f"{path} is not a regular file")
                    async for piece in _counted(content, note):
                        async with box.writing():
                            await asyncio.to_thread(_write_all, fd, piece)
                except OSError as err:
                    raise translate(err, path) from err
                finally:
                    os.close(fd)

    async def _open_for_writing(self, box: Box, path: str, mode: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            return await _open(box, path, flags, mode)
        except NotFound:
            parent = PurePosixPath(path).parent
            if parent == PurePosixPath("."):
                raise
            await _make_dirs(box, str(parent))
            return await _open(box, path, flags, mode)

    async def read_archive(self, ref: str, path: str) -> AsyncIterator[bytes]:
        """A tar stream of a file or directory."""
        async with self._idle.using(ref) as (runtime, box):
            with self._core.journal.recording("archive.read", runtime, path=shorten(path)) as note:
                trimmed = path.rstrip("/") or "/"
                fd = await _open(box, trimmed, os.O_RDONLY)
                name = PurePosixPath(trimmed).name or "root"
                reader, writer = os.pipe()
                packing = run_apart(pack_directory, fd, name, writer, shift=runtime.spec.ids.start)
                try:
                    async for piece in _pieces(reader, note):
                        yield piece
                finally:
                    os.close(reader)
                    try:
                        await packing
                    except BrokenPipeError:
                        pass
                    finally:
                        os.close(fd)

    async def write_archive(self, ref: str, path: str, archive: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into a directory."""
        async with self._idle.using(ref) as (runtime, box):
            with self._core.journal.recording("archive.write", runtime, path=shorten(path)) as note:
                await _make_dirs(box, path)
                fd = await _open(box, path, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    await _unpack(box, _counted(archive, note), fd, runtime.spec.ids.start)
                finally:
                    os.close(fd)


async def _unpack(box: Box, archive: AsyncIterator[bytes], fd: int, shift: int) -> None:
    """Hand the stream over piece by piece. Between the pieces the unpacker stands still, and the gate is open."""
    feed = Feed()
    unpacking = run_apart(_unpack_apart, feed, fd, shift)
    try:
        async for piece in archive:
            async with box.writing():
                await asyncio.to_thread(feed.give, piece)
    except BrokenPipeError:
        pass  # what the unpacker refused is told below
    except BaseException:
        feed.end()
        await asyncio.gather(unpacking, return_exceptions=True)
        raise
    feed.end()
    try:
        async with box.writing():
            await unpacking
    except OSError as err:
        raise translate(err, "the archive") from err


def _unpack_apart(feed: Feed, fd: int, shift: int) -> None:
    try:
        unpack_directory(feed, fd, shift=shift)
    finally:
        feed.leave()


async def _pieces(fd: int, note: Note) -> AsyncIterator[bytes]:
    """What is read from a descriptor, counted."""
    note.details["bytes"] = 0
    while piece := await asyncio.to_thread(os.read, fd, CHUNK):
        note.details["bytes"] += len(piece)
        yield piece


async def _counted(pieces: AsyncIterator[bytes], note: Note) -> AsyncIterator[bytes]:
    note.details["bytes"] = 0
    async for piece in pieces:
        note.details["bytes"] += len(piece)
        if piece:
            yield piece


async def _open(box: Box, path: str, flags: int, mode: int = _MODE_FILE) -> int:
    _check_path(path)
    try:
        if flags & (os.O_CREAT | os.O_TRUNC):
            async with box.writing():
                return await box.guest.open(path, flags, mode)
        return await box.guest.open(path, flags, mode)
    except OSError as err:
        raise translate(err, path) from err


async def _make_dirs(box: Box, path: str) -> None:
    _check_path(path)
    try:
        async with box.writing():
            await box.guest.make_dirs(path)
    except OSError as err:
        raise translate(err, path) from err


def _check_path(path: str) -> None:
    if not path or "\0" in path or len(os.fsencode(path)) > 4095:
        raise InvalidArgument(f"{path[:80]!r} is not a path")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def translate(err: OSError, path: str) -> ServiceError:
    """An errno from inside in the API's words."""
    if err.errno == errno.ENOENT:
        return NotFound(f"there is no {path} in the runtime")
    if err.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(f"{path} can't be opened", cause=err.strerror)
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"there is no room for {path}", cause=err.strerror)
    if err.errno in (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO):
        return InvalidArgument(f"{path} is not usable here", cause=err.strerror)
    return FailedPrecondition(f"{path} can't be opened", cause=err.strerror)
