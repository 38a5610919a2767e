"""Flattening: one layer that shows what a chain of layers shows above the same image.

The layers are read side by side, each of their names once. Whatever is no directory becomes another name of the
newest layer's file. As long as both exist, runtimes on either see its link count raised: an open file whose name is
gone counts one, not none, and what was copied up and deleted stays in the overlay's index until its work dir goes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from runta.kernel.tree import copy_file, copy_metadata, is_whiteout, link_file
from runta.kernel.walk import reach
from runta.store.chain import Chain, Merged, write_marks


def flatten_trees(trees: Sequence[Path], target: Path) -> None:
    """Merge layers, newest first, into the new directory `target`, which as a lower dir shows just the same.

    The layers stay as they are, but for link counts and change times of the files that `target` shares with them, and
    may be removed afterwards. Nothing is written out yet (sync_file_system()). Raises OSError; what was made until
    then is left for the caller to remove.
    """
    target.mkdir()
    chain = Chain(trees)
    linker = _Linker(target)
    pending = [chain.root]
    while pending:
        pending.extend(_fill(chain, pending.pop(), linker))


def _fill(chain: Chain, merged: Merged, linker: _Linker) -> list[Merged]:
    """Fill one directory and give it its metadata; the directories in it, which are still empty."""
    directories = []
    with reach(linker.target, merged.name) as new:
        for position, entry in _visible(chain, merged):
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                (new / entry.name).mkdir()
                directories.append(chain.find(merged, entry.name, position))
            elif merged.below is not None or not is_whiteout(info):
                # A whiteout in a directory that is not merged with another would itself be listed (ovl_iterate()).
                linker.place(Path(entry.path), info, merged.child(entry.name), new / entry.name)
        with chain.reach(merged.parts[0]) as newest:
            copy_metadata(newest, new, shift=0)
        write_marks(new, opaque=merged.opaque, redirect=merged.redirect)
    return directories


def _visible(chain: Chain, merged: Merged) -> Iterator[tuple[int, os.DirEntry[str]]]:
    """The newest entry of every name, whiteouts included, and the position of its directory among the parts."""
    seen: set[str] = set()
    for position, part in enumerate(merged.parts):
        with chain.reach(part) as directory, os.scandir(directory) as entries:
            for entry in entries:
                if entry.name not in seen:
                    seen.add(entry.name)
                    yield position, entry


class _Linker:
    """Gives files of layers names in one target, and keeps those together that are one file.

    A file is copied where it can't have another name: on another file system, or with too many names already. A group
    can't come to the second in the middle, because it has no more names than its file's link count said at first.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._most_links = os.pathconf(target, "PC_LINK_MAX") // 2
        self._names: dict[tuple[int, int], str] = {}
        """Device and inode in a layer → a name in the target: what has several names there."""

    def place(self, source: Path, info: os.stat_result, name: str, new: Path) -> None:
        """Make `name`, for which `new` is a path, that file."""
        known = self._names.get((info.st_dev, info.st_ino))
        if known is not None and self._link_known(known, new):
            return
        if known is not None or info.st_nlink > self._most_links or not link_file(source, new):
            copy_file(source, new, info, shift=0)
        if info.st_nlink > 1:
            self._names[info.st_dev, info.st_ino] = name

    def _link_known(self, name: str, new: Path) -> bool:
        with reach(self.target, name) as known:
            return link_file(known, new)
