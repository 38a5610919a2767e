"""Archives for tests: tars, OCI layouts and what `docker save` writes, made in memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from runta.store.oci import host_architecture

MTIME = 1_700_000_000


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, *, mode: int | None = None, link: str = "", **pax: str
) -> tarfile.TarInfo:
    """A member owned by whoever runs the test, so that no test of a rule needs root."""
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = mode if mode is not None else (0o755 if kind == tarfile.DIRTYPE else 0o644)
    member.linkname = link
    member.uid, member.gid = os.getuid(), os.getgid()
    member.mtime = MTIME
    member.pax_headers = {key.replace("__", "."): value for key, value in pax.items()}
    return member


def file(name: str, content: bytes = b"", **options: object) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, **options), content  # type: ignore[arg-type]


def directory(name: str, **options: object) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.DIRTYPE, **options), b""  # type: ignore[arg-type]


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.SYMTYPE, link=target), b""


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.LNKTYPE, link=target), b""


def tar(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def oci(
    layers: Sequence[bytes],
    *,
    env: Sequence[str] = (),
    architecture: str | None = None,
    compress: bool = False,
    extra: Mapping[str, bytes] | None = None,
    others: Sequence[Mapping[str, object]] = (),
    damage: str | None = None,
    platform: bool = True,
) -> bytes:
    """An OCI image layout; `damage` replaces the blob of this role (`layer`, `config`, `manifest`, `diff`)."""
    blobs: dict[str, bytes] = {}

    def add(content: bytes, role: str) -> dict[str, object]:
        digest = sha256(content)
        blobs[f"blobs/{digest.replace(':', '/')}"] = content + b" " if damage == role else content
        return {"digest": digest, "size": len(content)}

    arch = architecture or host_architecture()
    stored = [add(gzip.compress(layer) if compress else layer, "layer") for layer in layers]
    diff_ids = [sha256(layer + (b"?" if damage == "diff" else b"")) for layer in layers]
    config = {"os": "linux", "architecture": arch, "config": {"Env": list(env)}, "rootfs": {"diff_ids": diff_ids}}
    described = add(json.dumps(config).encode(), "config")
    manifest = add(json.dumps({"schemaVersion": 2, "config": described, "layers": stored}).encode(), "manifest")
    if platform:
        manifest["platform"] = {"os": "linux", "architecture": arch}
    index = {"schemaVersion": 2, "manifests": [*others, manifest]}
    members = [file(name, content) for name, content in {**blobs, **(extra or {})}.items()]
    return tar([*members, file("oci-layout", b"{}"), file("index.json", json.dumps(index).encode())])


def docker(layers: Sequence[bytes], *, env: Sequence[str] = (), count: int = 1, damage: bool = False) -> bytes:
    """What `docker save` wrote before it knew OCI: a second use of a layer is a symlink."""
    config = json.dumps(
        {
            "architecture": host_architecture(),
            "config": {"Env": list(env)},
            "rootfs": {"diff_ids": [sha256(layer) for layer in layers]},
        }
    ).encode()
    name = sha256(config).removeprefix("sha256:") + ".json"
    first: dict[bytes, str] = {}
    members = []
    for number, layer in enumerate(layers):
        member = f"layer{number}/layer.tar"
        if layer in first:
            members.append(symlink(member, f"../{first[layer]}"))
        else:
            first[layer] = member
            members.append(file(member, layer.replace(b"content", b"CONTENT") if damage else layer))
    listed = {
        "Config": name,
        "RepoTags": ["app:1"],
        "Layers": [f"layer{number}/layer.tar" for number in range(len(layers))],
    }
    return tar([*members, file(name, config), file("manifest.json", json.dumps([listed] * count).encode())])


def tree(root: Path) -> dict[str, str]:
    """Every name below a directory and what it is: `d`, a symlink's target after `→`, or a file's text."""
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"→{path.readlink()}"
        else:
            found[name] = "d" if path.is_dir() else path.read_text()
    return found
