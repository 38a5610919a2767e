"""What a chain of overlay layers shows: which of their directories make up a merged one.

It follows ovl_lookup() and its helpers (the kernel's fs/overlayfs/namei.c; in words: overlayfs.rst, "whiteouts and
opaque directories" and "redirect_dir"). The image below the chain is never looked at: what is known of it is under
which path the kernel would look there. Marks of nested overlays (`opaque` = "x") do not occur in upper dirs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from runta.kernel.walk import reach

_OPAQUE = "trusted.overlay.opaque"
_REDIRECT = "trusted.overlay.redirect"


@dataclass(frozen=True, slots=True)
class Part:
    """A directory of one layer."""

    layer: int
    """0 is the newest."""
    name: str
    """Relative to the layer's tree; "" is the tree itself."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A directory that the chain shows."""

    name: str
    """Where it shows, relative; "" is the root."""
    parts: tuple[Part, ...]
    """What it is made of, newest first; the first one's metadata shows."""
    below: str | None
    """Which directory of the image it also shows, if there is one of that name, relative. None: none."""
    unmarked: str | None
    """Which one it would show without a mark of its own. None: none, for its parent shows none."""

    def child(self, name: str) -> str:
        """The relative name of an entry."""
        return _join(self.name, name)

    @property
    def opaque(self) -> bool:
        """Whether a single layer needs a mark that hides the image's directory."""
        return self.below is None and self.unmarked is not None

    @property
    def redirect(self) -> str | None:
        """The mark that leads a single layer to the image's directory; the shorter kind where it will do."""
        if self.below is None or self.below == self.unmarked:
            return None
        above, _, last = self.below.rpartition("/")
        if self.unmarked is not None and above == self.unmarked.rpartition("/")[0]:
            return last
        return f"/{self.below}"


class _Step(NamedTuple):
    """What looking into one layer gave."""

    part: Part | None
    path: tuple[str, ...]
    """Where to look in the layers below."""
    from_root: bool
    """Whether that path starts at their roots, rather than in the directories of the parent."""
    stop: bool
    """Whether the layers below have no share."""


class Chain:
    """Layers, newest first. Their trees stand still. Every call raises OSError."""

    def __init__(self, trees: Sequence[Path]) -> None:
        self._trees = trees
        self._roots = tuple(Part(layer, "") for layer in range(len(trees)))

    @property
    def root(self) -> Merged:
        return Merged("", self._roots, "", "")

    def reach(self, part: Part) -> contextlib.AbstractContextManager[Path]:
        """A path of a directory, while the block runs."""
        return reach(self._trees[part.layer], part.name)

    def find(self, parent: Merged, name: str, first: int) -> Merged:
        """The directory `name` in a merged one; `parent.parts[first]` is the newest that holds the name."""
        parts: list[Part] = []
        path: tuple[str, ...] = (name,)
        above = parent.below
        ahead = deque(parent.parts[first:])
        stop = False
        while ahead and not stop:
            base = ahead.popleft()
            part, path, from_root, stop = self._look_into(base, path)
            if part:
                parts.append(part)
            if from_root:
                above, ahead = "", deque(self._roots[base.layer + 1 :])
        below = None if stop or above is None else _join(above, "/".join(path))
        unmarked = None if parent.below is None else _join(parent.below, name)
        return Merged(parent.child(name), tuple(parts), below, unmarked)

    def _look_into(self, base: Part, path: tuple[str, ...]) -> _Step:
        """Follow a path in one layer (ovl_lookup_layer()). A redirect on the way leads the layers below elsewhere."""
        known: tuple[str, ...] = ()
        stop = from_root = False
        part = base
        for index, name in enumerate(path):
            part = Part(base.layer, _join(part.name, name))
            with self.reach(part) as directory:
                is_directory = _is_directory(directory)
                if not is_directory:
                    return _Step(None, (*known, *path[index:]), from_root, stop or is_directory is False)
                redirect = read_redirect(directory)
                if is_opaque(directory):
                    stop, known = True, (*known, name)
                elif redirect is None:
                    known = (*known, name)
                elif redirect.startswith("/"):
                    # Even out of an opaque directory (ovl_check_redirect()).
                    stop, from_root, known = False, True, tuple(redirect.strip("/").split("/"))
                else:
                    known = (*known, redirect)
        return _Step(part, known, from_root, stop)


def _is_directory(path: Path) -> bool | None:
    """None if there is nothing; a whiteout is something."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return None


def _join(above: str, name: str) -> str:
    return f"{above}/{name}" if above else name


def is_opaque(directory: Path) -> bool:
    """Whether a directory of a layer hides those of the layers below."""
    return _read_mark(directory, _OPAQUE) == b"y"


def read_redirect(directory: Path) -> str | None:
    """Where the layers below have this directory: an absolute path, or another name in the same parent."""
    value = _read_mark(directory, _REDIRECT)
    return os.fsdecode(value) if value else None


def _read_mark(directory: Path, name: str) -> bytes | None:
    try:
        return os.getxattr(directory, name, follow_symlinks=False)
    except OSError as err:
        if err.errno == errno.ENODATA:
            return None
        raise


def write_marks(directory: Path, *, opaque: bool, redirect: str | None) -> None:
    """Give a directory these marks and no others."""
    wanted = {_OPAQUE: b"y" if opaque else None, _REDIRECT: os.fsencode(redirect) if redirect else None}
    for name, value in wanted.items():
        if value is not None:
            os.setxattr(directory, name, value, follow_symlinks=False)
        elif _read_mark(directory, name) is not None:
            os.removexattr(directory, name, follow_symlinks=False)
