"""What belongs to a captured upper dir and does not lie in it.

The kernel and CRIU keep it elsewhere: names that CRIU gave to open files whose own name is gone (`add_link_remaps`),
and the other names of a lower file that was copied up through one of them, which the overlay keeps together by its
index in the work dir (`add_aliases`). Both belong into the frozen window. Raises OSError.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from runta.kernel.tree import copy_content, copy_metadata, is_whiteout
from runta.store.capture import Capture


class HiddenNames:
    """Adds them to a capture of `upper`, whose overlay is mounted at `merged`."""

    def __init__(self, capture: Capture, *, upper: Path, merged: Path, shift: int) -> None:
        self._capture = capture
        self._tree = capture.tree
        self._upper = upper
        self._merged = merged
        self._shift = shift
        self._kept: list[tuple[Path, str]] = []
        """Link remaps: the file, outside the upper dir, and a name of it in the tree."""

    def add_link_remaps(self, kept: Path) -> None:
        """Add what CRIU's post-dump action kept: `kept`/names lists `inode path` pairs, each ended by a NUL byte, and
        `kept`/<inode> is the file."""
        listing = kept / "names"
        for record in listing.read_text(errors="surrogateescape").split("\0") if listing.exists() else ():
            inode, _, path = record.partition(" ")
            if name := path.removeprefix("./"):
                self._add_link_remap(int(inode), kept / inode, name)

    def _add_link_remap(self, inode: int, file: Path, name: str) -> None:
        known = self._capture.find_copy(inode)
        self._kept.append((file, known or name))
        place = self._tree / name
        with self._adding(name):
            if os.path.lexists(place) and is_whiteout(place.lstat()):
                place.unlink()  # an earlier dump's name, gone when the copy passed it, and now taken again
            if os.path.lexists(place):
                return
            if known:
                place.hardlink_to(self._tree / known)
            else:
                self._copy(file, name)
                self._capture.add_copy(file, name)

    def add_aliases(self, lowers: Sequence[Path], groups: Sequence[Sequence[str]]) -> None:
        """Add the names of lower files, in `groups` of one file each, that were copied up through another name."""
        for group in groups:
            for name in group:
                if self._is_missing(name) and self._was_copied_up(name, lowers):
                    with self._adding(name):
                        self._add_alias(name, group)

    def _is_missing(self, name: str) -> bool:
        """Whether the capture lacks a name whose file shows. The runtime's programs decide what stands on the way to
        it: no symbolic link of theirs is followed."""
        if not _has_real_parents(self._merged, name) or os.path.lexists(self._tree / name):
            return False
        place = self._merged / name
        return os.path.lexists(place) and stat.S_ISREG(place.lstat().st_mode)

    def _was_copied_up(self, name: str, lowers: Sequence[Path]) -> bool:
        """Whether a name shows another file than its lower one: a copy-up sets a new change time."""
        found = (lower / name for lower in lowers if _has_real_parents(lower, name) and os.path.lexists(lower / name))
        lower = next(found, None)
        if lower is None:
            return False
        return (self._merged / name).lstat().st_ctime_ns != lower.lstat().st_ctime_ns

    def _add_alias(self, name: str, group: Sequence[str]) -> None:
        """The merged name shows the times of its upper file, nanoseconds and all: that tells which one it is."""
        shown = _times_of(self._merged / name)
        siblings = [(self._upper / other, other) for other in group if self._is_captured(other)]
        for file, other in (*siblings, *self._kept):
            if os.path.lexists(file) and _times_of(file) == shown:
                (self._tree / name).hardlink_to(self._tree / other)
                return
        self._copy(self._merged / name, name)

    def _is_captured(self, name: str) -> bool:
        return all(_has_real_parents(root, name) and os.path.lexists(root / name) for root in (self._tree, self._upper))

    def _copy(self, source: Path, name: str) -> None:
        copy_content(source, self._tree / name, source.lstat().st_size)
        copy_metadata(source, self._tree / name, shift=self._shift)

    @contextlib.contextmanager
    def _adding(self, name: str) -> Iterator[None]:
        """The block adds a name to its directory, which keeps its times; missing ones above are made as merged ones:
        without an opaque mark they show what lies below."""
        for parent in reversed(Path(name).parents[:-1]):
            if not (self._tree / parent).exists():
                (self._tree / parent).mkdir()
                copy_metadata(self._merged / parent, self._tree / parent, shift=self._shift)
        directory = (self._tree / name).parent
        before = directory.stat()
        yield
        os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


def _has_real_parents(root: Path, name: str) -> bool:
    """Whether each directory above a name is one, as far as there are any."""
    for parent in reversed(Path(name).parents[:-1]):
        try:
            if not stat.S_ISDIR((root / parent).lstat().st_mode):
                return False
        except FileNotFoundError:
            return True
    return True


def _times_of(path: Path) -> tuple[int, int, int]:
    info = path.lstat()
    return info.st_ctime_ns, info.st_mtime_ns, info.st_size
