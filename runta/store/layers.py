"""Layers: captured upper dirs, plain ids, read-only ever after; the lower dirs of what is restored from them.

    layers/<id>/
    ├── tree/            the captured upper dir
    └── hardlinks.json   groups of names in it that are one file

An image's groups are found once and kept beside it, `images/<id>/hardlinks.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from runta.kernel.tree import Copied, copy_content, copy_metadata, copy_tree, find_hard_links
from runta.layout import Layout
from runta.store.staging import remove_tree

_MODE_PRIVATE = 0o700
_HARD_LINKS = "hardlinks.json"


class Layers:
    """What layers there are, and capturing new ones."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def tree(self, layer_id: str) -> Path:
        """The lower dir of a layer."""
        return self._layout.layer(layer_id) / "tree"

    def lowers(self, image_id: str, layer_ids: Sequence[str]) -> list[Path]:
        """The lower dirs of a runtime, newest first."""
        return [*(self.tree(layer) for layer in layer_ids), self._layout.image_rootfs(image_id)]

    def sweep(self, needed: Collection[str]) -> None:
        """Remove layers that no runtime and no checkpoint needs."""
        for entry in self._layout.layers.iterdir():
            if entry.name not in needed:
                remove_tree(entry)

    def find_hard_links(self, image_id: str, layer_ids: Sequence[str]) -> list[list[str]]:
        """Groups of names that are one file in some lower dir of a runtime."""
        places = [*(self._layout.layer(layer) for layer in layer_ids), self._layout.image(image_id)]
        groups: list[list[str]] = []
        for place in places:
            index = place / _HARD_LINKS
            if not index.exists():
                write_hard_links(place, find_hard_links(self._layout.image_rootfs(image_id)))
            groups.extend(json.loads(index.read_text()))
        return groups


def write_hard_links(place: Path, groups: list[list[str]]) -> None:
    """Keep a tree's groups beside it, written whole or not at all."""
    temporary = place / f".{_HARD_LINKS}.{os.getpid()}"
    temporary.write_text(json.dumps(groups))
    temporary.rename(place / _HARD_LINKS)


def capture(upper: Path, place: Path, *, shift: int) -> Copied:
    """Copy a frozen upper dir to `place`/tree, with plain ids. Raises OSError."""
    place.mkdir(mode=_MODE_PRIVATE)
    return copy_tree(upper, place / "tree", shift=shift)


def add_link_remaps(tree: Path, copied: Copied, listing: Path) -> None:
    """Add the names CRIU gave to open files whose own name is gone; it removes them when it is done with the dump.

    `listing` holds `inode path` pairs, each ended by a NUL byte: what CRIU's post-dump action wrote.
    """
    if not listing.exists():
        return
    for record in listing.read_text().split("\0"):
        if not record:
            continue
        inode, _, name = record.partition(" ")
        target, others = tree / name.removeprefix("./"), copied.names.get(int(inode), [])
        source = next((tree / other for other in others if (tree / other).exists()), None)
        if source is not None and not target.exists():
            target.hardlink_to(source)


def add_aliases(
    tree: Path, *, merged: Path, lowers: Sequence[Path], groups: Sequence[Sequence[str]], shift: int
) -> None:
    """Add the other names of files that were copied up through one of them.

    The overlay keeps the names of a lower file together through its index, which lies in the work dir: an upper dir alone
    would leave the names that were not written through at their old content. Runs in the frozen window.
    """
    for group in groups:
        for name in group:
            if not os.path.lexists(tree / name) and _was_copied_up(name, merged, lowers):
                _add_alias(tree, name, group, merged, shift)


def _was_copied_up(name: str, merged: Path, lowers: Sequence[Path]) -> bool:
    """Whether a name shows another file than its lower one: a copy-up sets a new change time."""
    lower = next((lower / name for lower in lowers if os.path.lexists(lower / name)), None)
    if lower is None or not os.path.lexists(merged / name):
        return False
    return (merged / name).lstat().st_ctime_ns != lower.lstat().st_ctime_ns


def _add_alias(tree: Path, name: str, group: Sequence[str], merged: Path, shift: int) -> None:
    _ensure_parents(tree, name, merged, shift)
    inode = (merged / name).lstat().st_ino
    for other in group:
        if other != name and os.path.lexists(tree / other) and os.path.lexists(merged / other):
            if (merged / other).lstat().st_ino == inode:
                (tree / name).hardlink_to(tree / other)
                return
    copy_content(merged / name, tree / name, (merged / name).lstat().st_size)
    copy_metadata(merged / name, tree / name, shift=shift)


def _ensure_parents(tree: Path, name: str, merged: Path, shift: int) -> None:
    """Directories above a name, as merged ones: without an opaque mark they show what lies below."""
    for parent in reversed(Path(name).parents[:-1]):
        if not (tree / parent).exists():
            (tree / parent).mkdir()
            copy_metadata(merged / parent, tree / parent, shift=shift)
