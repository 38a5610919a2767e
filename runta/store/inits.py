"""Guest init binaries: kept by digest, immutable, because a restored process must find the very file of its dump."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path

from runta.errors import FailedPrecondition
from runta.layout import Layout
from runta.store.staging import commit, remove_tree, stage

_MODE_EXECUTABLE = 0o555
_MODE_PASS = 0o711


class Inits:
    """`init/<digest>/runta-init`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def install(self, binary: Path) -> str:
        """Keep a binary; returns its digest (SHA-256)."""
        try:
            digest = hashlib.sha256(binary.read_bytes()).hexdigest()
        except FileNotFoundError as err:
            raise FailedPrecondition(
                "the guest init is missing", cause=f"there is no {binary}", hint="run `make setup`"
            ) from err
        if not self._layout.init(digest).exists():
            with stage(self._layout.staging) as place:
                staged = place / digest
                staged.mkdir()
                shutil.copyfile(binary, staged / "runta-init")
                (staged / "runta-init").chmod(_MODE_EXECUTABLE)
                staged.chmod(_MODE_PASS)
                commit(staged, self._layout.inits / digest)
        return digest

    def link(self, digest: str, target: Path) -> None:
        """Put the binary into a runtime's `run` directory: a hard link, the very file of every dump made with it."""
        try:
            target.hardlink_to(self._layout.init(digest))
        except FileNotFoundError as err:
            raise FailedPrecondition(
                f"the guest init {digest[:12]} is gone",
                hint="a checkpoint can be restored only with the init it was made with",
            ) from err

    def sweep(self, needed: Collection[str]) -> None:
        """Remove binaries that nothing needs any more."""
        for entry in self._layout.inits.iterdir():
            if entry.name not in needed:
                remove_tree(entry)
