"""Image archives: an OCI image layout or what `docker save` writes, as a list of layers and an environment.

Sources: OCI image specification (image-layout.md, manifest.md, config.md), Docker image specification v1.2.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runta.errors import InvalidArgument
from runta.rules import ENV_NAME_PATTERN

_DIGEST = re.compile(r"sha(256|512):([0-9a-f]{64}|[0-9a-f]{128})")
_NAMED_BY_DIGEST = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json)?")
_MAX_JSON = 16 << 20
_MAX_DEPTH = 4
_CHUNK = 1 << 20
_ARCHITECTURES = {
    "aarch64": "arm64",
    "armv6l": "arm",
    "armv7l": "arm",
    "i686": "386",
    "loongarch64": "loong64",
    "x86_64": "amd64",
}
_MAKE_ANEW = "fetch or save the image again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer in an archive."""

    member: str
    digest: str | None
    """Of the file as it lies in the archive."""
    diff_id: str | None
    """Of the tar, decompressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an image is put together from, oldest layer first."""

    layers: tuple[Layer, ...]
    env: Mapping[str, str]


class ImageArchive:
    """An uncompressed image archive, opened for reading at random."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._members = {posixpath.normpath(member.name): member for member in tar}

    def plan(self) -> Plan:
        """What to unpack on this host. Raises InvalidArgument where the archive holds no such image, or several."""
        if "index.json" in self._members:
            index = self._read_json("index.json", None)
            return self._plan_oci(self._choose(index))
        return self._plan_docker(self._read_json("manifest.json", None))

    def copy_out(self, layer: Layer, target: Path) -> None:
        """Copy a layer's file to `target`. Raises InvalidArgument where its digest is another."""
        with target.open("xb") as file:
            self._copy(layer.member, layer.digest, file.write)

    def _plan_oci(self, descriptor: Mapping[str, Any]) -> Plan:
        manifest = self._read_blob(descriptor)
        config = self._read_blob(_expect(manifest, "config", dict))
        layers = _expect(manifest, "layers", list)
        diff_ids = _read_diff_ids(config, len(layers))
        _require_this_architecture(config)
        found = [
            Layer(member=_blob_name(entry), digest=_digest_of(entry), diff_id=diff_id)
            for entry, diff_id in zip(layers, diff_ids, strict=True)
        ]
        return Plan(layers=tuple(found), env=_read_env(config))

    def _plan_docker(self, manifests: Any) -> Plan:
        if not isinstance(manifests, list) or len(manifests) != 1:
            names = [tag for entry in manifests or [] if isinstance(entry, dict) for tag in entry.get("RepoTags") or []]
            raise InvalidArgument(
                "the archive does not hold exactly one image",
                cause=f"it holds {', '.join(names) or 'none'}",
                hint="save one image an archive",
            )
        name = str(_expect(manifests[0], "Config", str))
        named = _NAMED_BY_DIGEST.fullmatch(name)
        config = self._read_json(posixpath.normpath(name), f"sha256:{named[1]}" if named else None)
        layers = _expect(manifests[0], "Layers", list)
        diff_ids = _read_diff_ids(config, len(layers))
        _require_this_architecture(config)
        found = [
            Layer(member=posixpath.normpath(str(entry)), digest=None, diff_id=diff_id)
            for entry, diff_id in zip(layers, diff_ids, strict=True)
        ]
        return Plan(layers=tuple(found), env=_read_env(config))

    def _choose(self, index: Mapping[str, Any], depth: int = 0) -> Mapping[str, Any]:
        """The one manifest for this host, looked for in nested indexes too."""
        if depth > _MAX_DEPTH:
            raise InvalidArgument("the archive's indexes are nested too deeply", hint=_MAKE_ANEW)
        entries = [entry for entry in _expect(index, "manifests", list) if isinstance(entry, dict)]
        fitting = [entry for entry in entries if _fits(entry)]
        if not fitting:
            raise InvalidArgument(
                f"the archive holds no image for linux/{host_architecture()}",
                cause=f"it holds {', '.join(sorted({_platform_of(entry) for entry in entries})) or 'none'}",
                hint="save the image of this host's architecture",
            )
        if len({_digest_of(entry) for entry in fitting}) > 1:
            raise InvalidArgument(
                "the archive holds more than one image",
                cause=", ".join(_digest_of(entry)[:19] for entry in fitting),
                hint="save one image an archive",
            )
        content = self._read_blob(fitting[0])
        return self._choose(content, depth + 1) if "manifests" in content else fitting[0]

    def _read_blob(self, descriptor: Mapping[str, Any]) -> Mapping[str, Any]:
        content = self._read_json(_blob_name(descriptor), _digest_of(descriptor))
        if not isinstance(content, dict):
            raise InvalidArgument(f"the archive's {_blob_name(descriptor)} is not what it should be", hint=_MAKE_ANEW)
        return content

    def _read_json(self, name: str, digest: str | None) -> Any:
        member = self._find(name)
        if member.size > _MAX_JSON:
            raise InvalidArgument(f"the archive's {name} is too large", cause=f"{member.size} bytes", hint=_MAKE_ANEW)
        pieces: list[bytes] = []
        self._copy(name, digest, pieces.append)
        try:
            return json.loads(b"".join(pieces))
        except ValueError as err:
            raise InvalidArgument(f"the archive's {name} is not JSON", cause=str(err), hint=_MAKE_ANEW) from err

    def _copy(self, name: str, digest: str | None, write: Any) -> None:
        sums = hashlib.new(digest.partition(":")[0]) if digest else None
        for piece in self._read_pieces(name):
            write(piece)
            if sums:
                sums.update(piece)
        if digest and sums:
            require_digest(name, digest, sums.hexdigest())

    def _read_pieces(self, name: str) -> Iterator[bytes]:
        file = self._tar.extractfile(self._find(name))
        if file is None:
            raise InvalidArgument(f"the archive's {name} is not a file", hint=_MAKE_ANEW)
        while piece := file.read(_CHUNK):
            yield piece

    def _find(self, name: str) -> tarfile.TarInfo:
        """A member, through the links old `docker save` makes for a layer that occurs twice."""
        for _ in range(_MAX_DEPTH):
            member = self._members.get(name)
            if member is None:
                break
            if not (member.issym() or member.islnk()):
                return member
            folder = posixpath.dirname(name) if member.issym() else ""
            name = posixpath.normpath(posixpath.join(folder, member.linkname))
        raise InvalidArgument(
            "the archive is not complete", cause=f"{name} is missing in it", hint="save the image with all its layers"
        )


def require_digest(name: str, wanted: str, found: str) -> None:
    """Raise InvalidArgument unless a file's digest is the one the archive names."""
    if wanted.partition(":")[2] != found:
        raise InvalidArgument(
            f"{name} in the archive is damaged",
            cause=f"its digest should be {wanted[:19]}… and is {found[:12]}…",
            hint=_MAKE_ANEW,
        )


def host_architecture() -> str:
    """This host's architecture in the words of OCI (Go's GOARCH)."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


def _fits(entry: Mapping[str, Any]) -> bool:
    platform = entry.get("platform")
    if not isinstance(platform, dict):
        return True
    return platform.get("os") == "linux" and platform.get("architecture") == host_architecture()


def _platform_of(entry: Mapping[str, Any]) -> str:
    platform = entry.get("platform") or {}
    return f"{platform.get('os', '?')}/{platform.get('architecture', '?')}"


def _require_this_architecture(config: Mapping[str, Any]) -> None:
    found = config.get("architecture")
    if found and found != host_architecture():
        raise InvalidArgument(
            f"the image is for {config.get('os', 'linux')}/{found}",
            cause=f"this host is linux/{host_architecture()}",
            hint="save the image of this host's architecture",
        )


def _expect(table: Any, key: str, kind: type) -> Any:
    value = table.get(key) if isinstance(table, dict) else None
    if not isinstance(value, kind):
        raise InvalidArgument(f"the archive's description lacks {key!r}", hint=_MAKE_ANEW)
    return value


def _digest_of(descriptor: Any) -> str:
    digest = str(_expect(descriptor, "digest", str))
    if not _DIGEST.fullmatch(digest):
        raise InvalidArgument(
            f"the archive names a digest {digest[:80]!r}", cause="known are sha256 and sha512", hint=_MAKE_ANEW
        )
    return digest


def _blob_name(descriptor: Any) -> str:
    return "blobs/" + _digest_of(descriptor).replace(":", "/")


def _read_diff_ids(config: Any, count: int) -> Sequence[str | None]:
    """Digests of the decompressed layers, one each."""
    found = (config.get("rootfs") or {}).get("diff_ids") if isinstance(config, dict) else None
    if not found:
        return [None] * count
    if len(found) != count:
        raise InvalidArgument(
            "the archive's description contradicts itself",
            cause=f"{count} layers, {len(found)} digests of them",
            hint=_MAKE_ANEW,
        )
    return [_digest_of({"digest": entry}) for entry in found]


def _read_env(config: Mapping[str, Any]) -> Mapping[str, str]:
    """The image's environment, without what the service keeps for itself or no shell could name."""
    lines = (config.get("config") or {}).get("Env") or []
    pairs = [str(line).partition("=") for line in lines]
    return {
        name: value for name, _, value in pairs if ENV_NAME_PATTERN.fullmatch(name) and not name.startswith("RUNTA_")
    }
