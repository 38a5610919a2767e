"""An archive that a user brings, as a root file system: plain tar, OCI image layout or `docker save`."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from runta.errors import InvalidArgument
from runta.store.compression import Decompressor, open_stream, sniff
from runta.store.oci import ImageArchive, require_digest
from runta.store.unpack import Unpacker

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_IMAGE_MARKS = frozenset({"index.json", "manifest.json", "oci-layout"})
_ROOT_MARKS = frozenset({"bin", "dev", "etc", "home", "lib", "proc", "root", "sbin", "sys", "tmp", "usr", "var"})
_DAMAGED = (tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an archive held beside its files."""

    env: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    """Device nodes that were left out: a runtime has a /dev of its own."""


def import_archive(path: Path, rootfs: Path, scratch: Path, tools: Decompressor) -> Imported:
    """Unpack an archive into `rootfs`, an empty directory; `scratch` is one for files in between.

    Raises InvalidArgument for an archive that is refused, damaged, or none at all.
    """
    try:
        if _is_image(path, tools):
            return _import_image(path, rootfs, scratch, tools)
        return _import_plain(path, rootfs, tools)
    except _DAMAGED as err:
        raise InvalidArgument(
            f"{path.name} is no archive that can be imported",
            cause=f"it is damaged, or no tar: {err}",
            hint="import a tar of a root file system (plain, gzip, xz, bzip2, zstd), an OCI layout or a `docker save`",
        ) from err


def _is_image(path: Path, tools: Decompressor) -> bool:
    """Whether an archive is an image's: the first telling name decides, so that a large tar is not read twice."""
    with open_stream(path, tools) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            parts = [part for part in member.name.split("/") if part not in ("", ".")]
            if len(parts) == 1 and parts[0] in _IMAGE_MARKS:
                return True
            if parts and parts[0] in _ROOT_MARKS:
                return False
            tar.members = []  # type: ignore[attr-defined]
    return False


def _import_plain(path: Path, rootfs: Path, tools: Decompressor) -> Imported:
    with Unpacker(rootfs) as unpacker, open_stream(path, tools) as stream:
        if unpacker.unpack(stream, layered=False) == 0:
            raise InvalidArgument(f"{path.name} is empty", hint="import a tar of a root file system")
        _drain(stream)
        return Imported(skipped=tuple(unpacker.skipped))


def _import_image(path: Path, rootfs: Path, scratch: Path, tools: Decompressor) -> Imported:
    archive_path = _decompress(path, scratch / "archive.tar", tools) if sniff(path) else path
    with tarfile.open(archive_path, mode="r:") as tar, Unpacker(rootfs) as unpacker:
        archive = ImageArchive(tar)
        plan = archive.plan()
        for layer in plan.layers:
            blob = scratch / "layer"
            archive.copy_out(layer, blob)
            with open_stream(blob, tools) as stream:
                _unpack_layer(unpacker, stream, layer.member, layer.diff_id)
            blob.unlink()
        return Imported(env=plan.env, skipped=tuple(unpacker.skipped))


def _decompress(path: Path, target: Path, tools: Decompressor) -> Path:
    with open_stream(path, tools) as stream, target.open("xb") as file:
        shutil.copyfileobj(stream, file, _CHUNK)
    return target


def _unpack_layer(unpacker: Unpacker, stream: BinaryIO, name: str, diff_id: str | None) -> None:
    algorithm = (diff_id or "sha256:").partition(":")[0]
    hashing = _Hashing(stream, algorithm)
    unpacker.unpack(cast(BinaryIO, hashing), layered=True)
    _drain(cast(BinaryIO, hashing))
    if diff_id:
        require_digest(name, diff_id, hashing.sums.hexdigest())


def _drain(stream: BinaryIO) -> None:
    """Read to the end: only then is a digest complete and a decompressor sure."""
    while stream.read(_CHUNK):
        pass


class _Hashing(io.RawIOBase):
    """A stream that sums up what is read from it."""

    def __init__(self, stream: BinaryIO, algorithm: str) -> None:
        super().__init__()
        self._stream = stream
        self.sums = hashlib.new(algorithm)

    def read(self, size: int = -1, /) -> bytes:
        piece = self._stream.read(size)
        self.sums.update(piece)
        return piece
