"""What a file is compressed with, found by its content, and reading it decompressed."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
_LONGEST = max(len(magic) for magic, _ in _MAGIC)


class Decompressor(Protocol):
    """What has to be asked of a program on the host."""

    def open_zstd(self, path: Path) -> contextlib.AbstractContextManager[BinaryIO]: ...


def sniff(path: Path) -> str | None:
    """`gzip`, `xz`, `bzip2`, `zstd`, or None for anything else."""
    with path.open("rb") as file:
        start = file.read(_LONGEST)
    # zstd files may begin with skippable frames (RFC 8878), as pzstd and seekable writers make them.
    if len(start) >= 4 and 0x50 <= start[0] <= 0x5F and start[1:4] == b"\x2a\x4d\x18":
        return "zstd"
    return next((kind for magic, kind in _MAGIC if start.startswith(magic)), None)


@contextlib.contextmanager
def open_stream(path: Path, tools: Decompressor) -> Iterator[BinaryIO]:
    """The content of a file, decompressed."""
    kind = sniff(path)
    if kind == "zstd":
        with tools.open_zstd(path) as stream:
            yield stream
        return
    with _open_plainly(path, kind) as plain:
        yield cast(BinaryIO, plain)


def _open_plainly(path: Path, kind: str | None) -> IO[bytes]:
    if kind == "gzip":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if kind == "xz":
        return lzma.open(path, "rb")
    return bz2.open(path, "rb") if kind == "bzip2" else path.open("rb")
