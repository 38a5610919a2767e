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
from runta.errors import FailedPrecondition, InvalidArgument, NoSpace, NotFound, PermissionDenied, ServiceError
from runta.kernel.archive import pack_directory, unpack_directory

CHUNK = 256 << 10
_MODE_FILE = 0o644


class Files:
    """Reading and writing, one file or a whole tree."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def _box(self, ref: str) -> Box:
        return self._core.box(self._core.find_runtime(ref))

    async def read(self, ref: str, path: str) -> AsyncIterator[bytes]:
        """The content of a regular file."""
        fd = await _open(self._box(ref), path, os.O_RDONLY)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidArgument(f"{path} is not a regular file")
            while piece := await asyncio.to_thread(os.read, fd, CHUNK):
                yield piece
        finally:
            os.close(fd)

    async def write(self, ref: str, path: str, content: AsyncIterator[bytes], *, mode: int = _MODE_FILE) -> None:
        """Replace a file's content; its directories are made if missing."""
        box = self._box(ref)
        fd = await self._open_for_writing(box, path, mode)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidArgument(f"{path} is not a regular file")
            async for piece in content:
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
        runtime = self._core.find_runtime(ref)
        box = self._core.box(runtime)
        trimmed = path.rstrip("/") or "/"
        fd = await _open(box, trimmed, os.O_RDONLY)
        name = PurePosixPath(trimmed).name or "root"
        reader, writer = os.pipe()
        packing = asyncio.create_task(
            asyncio.to_thread(pack_directory, fd, name, writer, shift=runtime.spec.ids.start), name=f"pack {path}"
        )
        try:
            while piece := await asyncio.to_thread(os.read, reader, CHUNK):
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
        runtime = self._core.find_runtime(ref)
        box = self._core.box(runtime)
        await _make_dirs(box, path)
        fd = await _open(box, path, os.O_RDONLY | os.O_DIRECTORY)
        reader, writer = os.pipe()
        unpacking = asyncio.create_task(
            asyncio.to_thread(unpack_directory, reader, fd, shift=runtime.spec.ids.start), name=f"unpack {path}"
        )
        try:
            await self._feed(box, archive, writer, unpacking)
        finally:
            os.close(fd)

    async def _feed(self, box: Box, archive: AsyncIterator[bytes], writer: int, unpacking: asyncio.Task[None]) -> None:
        """Hand the stream over piece by piece; the gate is held until the unpacker has taken each."""
        try:
            async with box.writing():
                async for piece in archive:
                    await asyncio.to_thread(_write_all, writer, piece)
                os.close(writer)
                writer = -1
                await unpacking
        except BrokenPipeError:
            await unpacking
        except OSError as err:
            raise translate(err, "the archive") from err
        finally:
            if writer >= 0:
                os.close(writer)
                await asyncio.gather(unpacking, return_exceptions=True)


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
