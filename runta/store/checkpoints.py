"""Checkpoints on disk: stage, commit, verify, delete.

    checkpoints/<id>/
    ├── manifest.json    written last: without it there is no checkpoint
    ├── upper.tar.zst    the captured upper dir (a full copy of its layer, but for sockets: the manifest lists them)
    ├── dump/            CRIU's image files (kind full)
    └── log/             dump.log, stats-dump

One service writes here, and it holds the lock of the state directory. A checkpoint's files never change after the
rename; a delete removes the manifest first, so that a half-deleted checkpoint is none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runta.errors import InternalError, NotFound
from runta.kernel.archive import pack_tree
from runta.layout import CheckpointDir, Layout
from runta.models import Checkpoint
from runta.store.codec import decode, encode
from runta.store.layers import index_hard_links
from runta.store.staging import commit, remove_tree, sync_directory, sync_file, sync_file_system

FORMAT = 1
_HANDS = 3
_LARGE = 2
"""Files whose writing out is begun early: most of a dump is in one or two."""
_MODE_PRIVATE = 0o600
_MODE_DUMP = 0o644
"""CRIU's restored processes read parts of the dump as the inside's root; the directories above, 0700, keep others
out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What a dump was made with and on; a restore elsewhere compares."""

    criu: str
    runc: str
    kernel: str
    architecture: str
    cpu_flags: str
    """SHA-256 of the CPU's feature flags."""


class Checkpoints:
    """The checkpoints directory."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._verified: dict[Path, tuple[int, int, int]] = {}

    def seal(self, staged: Path, checkpoint: Checkpoint, *, facts: HostFacts) -> Checkpoint:
        """Write tarball, digests and manifest of a staged checkpoint, and give it and its layer their places.

        `staged` holds `checkpoint/` (dump, log) and `layer/` (tree). Returns the checkpoint with its size.
        """
        place = CheckpointDir(staged / "checkpoint")
        admit_restorers(place.dump)
        with ThreadPoolExecutor(_HANDS) as pool:
            # The disk, a core for the digests and one for the tarball have work at the same time.
            dumped = sorted(_files(place.root), key=lambda path: path.stat().st_size, reverse=True)
            written = [pool.submit(sync_file, path) for path in dumped[:_LARGE]]
            summed = {path: pool.submit(_digest, path) for path in dumped}
            index_hard_links(staged / "layer", staged / "layer" / "tree")
            sockets = pack_tree(staged / "layer" / "tree", place.tarball)
            summed[place.tarball] = pool.submit(_digest, place.tarball)
            digests = {str(path.relative_to(place.root)): found.result() for path, found in sorted(summed.items())}
            for each in written:
                each.result()
        size = sum(path.stat().st_size for path in _files(place.root))
        done = replace(checkpoint, size_bytes=size)
        manifest = {
            "format": FORMAT,
            "checkpoint": encode(done),
            "host": encode(facts),
            "digests": digests,
            "sockets": [os.fsencode(name).decode(errors="backslashreplace") for name in sockets],
        }
        place.manifest.write_text(json.dumps(manifest, indent=1, sort_keys=True))
        for path in (place.tarball, place.manifest):
            path.chmod(_MODE_PRIVATE)
        sync_file_system(place.root)
        commit(staged / "layer", self._layout.layer(checkpoint.spec.layers[0]))
        commit(place.root, self._layout.checkpoints / checkpoint.id)
        self._remember(self._layout.checkpoint(checkpoint.id))
        return done

    def _remember(self, place: CheckpointDir) -> None:
        self._verified.update((path, _fingerprint(path)) for path in _files(place.root))

    def verify(self, checkpoint_id: str) -> None:
        """Compare a checkpoint with its digests; files that were compared since the service started are not read again.

        Raises InternalError naming the file that differs, NotFound if there is no manifest.
        """
        place = self._layout.checkpoint(checkpoint_id)
        for name, digest in self.manifest(checkpoint_id)["digests"].items():
            path = place.root / name
            if not path.exists():
                raise _damaged(checkpoint_id, name, "it is missing")
            if self._verified.get(path) != _fingerprint(path) and _digest(path) != digest:
                raise _damaged(checkpoint_id, name, "its digest differs from the manifest's")
            self._verified[path] = _fingerprint(path)

    def manifest(self, checkpoint_id: str) -> Mapping[str, Any]:
        """A checkpoint's manifest."""
        try:
            found: Mapping[str, Any] = json.loads(self._layout.checkpoint(checkpoint_id).manifest.read_text())
        except FileNotFoundError as err:
            raise NotFound(f"checkpoint {checkpoint_id} has no manifest", cause="its creation never finished") from err
        return found

    def complete(self) -> Iterator[Checkpoint]:
        """The checkpoints whose manifest is there."""
        for place in sorted(self._layout.checkpoints.iterdir()):
            if (place / "manifest.json").exists():
                yield decode(Checkpoint, self.manifest(place.name)["checkpoint"])

    def remove(self, checkpoint_id: str) -> None:
        """Delete a checkpoint's files; steps that were done before are no error. Its layers are swept elsewhere."""
        place = self._layout.checkpoint(checkpoint_id)
        if place.root.exists():
            place.manifest.unlink(missing_ok=True)
            sync_directory(place.root)
            remove_tree(place.root)
        for path in [path for path in list(self._verified) if place.root in path.parents]:
            self._verified.pop(path, None)


def admit_restorers(dump: Path) -> None:
    """Let the inside's root read a dump's files; a cold checkpoint has none."""
    for path in dump.rglob("*") if dump.exists() else ():
        if path.is_file():
            path.chmod(_MODE_DUMP)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != "manifest.json")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(path: Path) -> tuple[int, int, int]:
    info = path.stat()
    return info.st_ino, info.st_size, info.st_mtime_ns


def _damaged(checkpoint_id: str, name: str, cause: str) -> InternalError:
    return InternalError(
        f"checkpoint {checkpoint_id} is damaged",
        cause=f"{name}: {cause}",
        hint="delete it; it can't be restored safely",
    )
