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

from runta.kernel.tree import Copied, copy_content, copy_metadata, copy_tree, find_hard_links, is_whiteout
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
        layers = [(self._layout.layer(layer), self.tree(layer)) for layer in layer_ids]
        places = [*layers, (self._layout.image(image_id), self._layout.image_rootfs(image_id))]
        groups: list[list[str]] = []
        for place, tree in places:
            if not (place / _HARD_LINKS).exists():
                index_hard_links(place, tree)
            groups.extend(json.loads((place / _HARD_LINKS).read_text()))
        return groups


def index_hard_links(place: Path, tree: Path) -> None:
    """Find a tree's groups, and keep them beside it."""
    write_hard_links(place, find_hard_links(tree))


def write_hard_links(place: Path, groups: list[list[str]]) -> None:
    """Keep a tree's groups beside it, written whole or not at all."""
    temporary = place / f".{_HARD_LINKS}.{os.getpid()}"
    temporary.write_text(json.dumps(groups))
    temporary.rename(place / _HARD_LINKS)


class Capture:
    """One capture of a frozen upper dir into `place`/tree, with plain ids.

    The kernel and CRIU keep things about an upper dir elsewhere, and each is put into the tree by a step of its own:
    names CRIU gave to open files whose own name is gone (`add_link_remaps`), and the other names of a lower file
    that was copied up through one of them, which the overlay keeps together by its index in the work dir
    (`add_aliases`). All of it belongs into the frozen window. Raises OSError.
    """

    def __init__(self, upper: Path, place: Path, *, merged: Path, shift: int) -> None:
        self._upper = upper
        self._place = place
        self._merged = merged
        self._shift = shift
        self._copied = Copied()
        self._kept: list[tuple[Path, str]] = []
        """Link remaps: the file, outside the upper dir, and a name of it in the tree."""

    @property
    def tree(self) -> Path:
        return self._place / "tree"

    def copy(self) -> None:
        """Copy the upper dir."""
        self._place.mkdir(mode=_MODE_PRIVATE)
        self._copied = copy_tree(self._upper, self.tree, shift=self._shift)

    def add_link_remaps(self, kept: Path) -> None:
        """Add what CRIU's post-dump action kept: `kept`/names lists `inode path` pairs, each ended by a NUL byte, and
        `kept`/<inode> is the file."""
        listing = kept / "names"
        for record in listing.read_text().split("\0") if listing.exists() else ():
            inode, _, path = record.partition(" ")
            name = path.removeprefix("./")
            if not name:
                continue
            known = next((one for one in self._copied.names.get(int(inode), []) if (self.tree / one).exists()), None)
            self._kept.append((kept / inode, known or name))
            if os.path.lexists(self.tree / name) and is_whiteout(self.tree / name):
                (self.tree / name).unlink()  # an earlier dump's name, gone when the copy passed it, and now taken again
            if os.path.lexists(self.tree / name):
                continue
            self._ensure_parents(name)
            if known:
                (self.tree / name).hardlink_to(self.tree / known)
            else:
                self._copy_file(kept / inode, name)
                self._copied.names.setdefault(int(inode), []).append(name)

    def add_aliases(self, lowers: Sequence[Path], groups: Sequence[Sequence[str]]) -> None:
        """Add the names of lower files, in `groups` of one file each, that were copied up through another name."""
        for group in groups:
            for name in group:
                if not os.path.lexists(self.tree / name) and self._was_copied_up(name, lowers):
                    self._add_alias(name, group)

    def _was_copied_up(self, name: str, lowers: Sequence[Path]) -> bool:
        """Whether a name shows another file than its lower one: a copy-up sets a new change time."""
        lower = next((lower / name for lower in lowers if os.path.lexists(lower / name)), None)
        if lower is None or not os.path.lexists(self._merged / name):
            return False
        return (self._merged / name).lstat().st_ctime_ns != lower.lstat().st_ctime_ns

    def _add_alias(self, name: str, group: Sequence[str]) -> None:
        """The merged name shows the times of its upper file, nanoseconds and all: that tells which one it is."""
        self._ensure_parents(name)
        shown = _stamp(self._merged / name)
        siblings = [(self._upper / other, other) for other in group if os.path.lexists(self.tree / other)]
        for file, other in (*siblings, *self._kept):
            if os.path.lexists(file) and _stamp(file) == shown:
                (self.tree / name).hardlink_to(self.tree / other)
                return
        self._copy_file(self._merged / name, name)

    def _copy_file(self, source: Path, name: str) -> None:
        copy_content(source, self.tree / name, source.lstat().st_size)
        copy_metadata(source, self.tree / name, shift=self._shift)

    def _ensure_parents(self, name: str) -> None:
        """Directories above a name, as merged ones: without an opaque mark they show what lies below."""
        for parent in reversed(Path(name).parents[:-1]):
            if not (self.tree / parent).exists():
                (self.tree / parent).mkdir()
                copy_metadata(self._merged / parent, self.tree / parent, shift=self._shift)


def _stamp(path: Path) -> tuple[int, int, int]:
    info = path.lstat()
    return info.st_ctime_ns, info.st_mtime_ns, info.st_size
