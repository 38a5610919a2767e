"""File trees and overlays for tests: what is in a tree, word for word, and real mounts of chains of layers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from runta.kernel.mounts import OVERLAY_OPTIONS, unmount
from runta.kernel.tree import copy_metadata
from runta.kernel.walk import walk_tree
from runta.store.capture import Capture
from runta.store.flatten import flatten_trees

ACL_ACCESS, ACL_DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def exchange(one: Path, other: Path) -> None:
    """Give two names each other's files (renameat2(2), RENAME_EXCHANGE)."""
    _check(_libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE), "renameat2")


def acl(user: int, *, bits: int = 5) -> bytes:
    """An ACL with one named user, as the kernel takes it (linux/posix_acl_xattr.h)."""
    none = 0xFFFFFFFF
    entries = ((0x01, 7, none), (0x02, bits, user), (0x04, 5, none), (0x10, 7, none), (0x20, 4, none))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def describe(tree: Path, *, times: bool = True) -> dict[str, tuple[object, ...]]:
    """Everything below a directory, and itself as "": name → type and mode, owner, device, size, content, xattrs, time.

    A file with several names carries all of them. The sizes of directories are left out, and link counts, which differ
    where layers share files.
    """
    entries = [("", tree.lstat()), *walk_tree(tree)]
    groups: dict[int, list[str]] = {}
    for name, info in entries:
        if not stat.S_ISDIR(info.st_mode):
            groups.setdefault(info.st_ino, []).append(name)
    found = {}
    for name, info in entries:
        path = tree / name
        is_directory = stat.S_ISDIR(info.st_mode)
        content: bytes | str = ""
        if stat.S_ISREG(info.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        xattrs = {
            one: os.getxattr(path, one, follow_symlinks=False) for one in os.listxattr(path, follow_symlinks=False)
        }
        found[name] = (
            oct(info.st_mode),
            (info.st_uid, info.st_gid),
            info.st_rdev,
            None if is_directory else info.st_size,
            content,
            xattrs,
            info.st_mtime_ns if times else None,
            None if is_directory else tuple(sorted(groups[info.st_ino])),
        )
    return found


def differences(one: dict[str, tuple[object, ...]], other: dict[str, tuple[object, ...]]) -> dict[str, object]:
    """Names that two descriptions tell different things of."""
    return {
        name: (one.get(name), other.get(name)) for name in sorted({*one, *other}) if one.get(name) != other.get(name)
    }


@contextlib.contextmanager
def overlay(lowers: Sequence[Path], place: Path) -> Iterator[Path]:
    """An overlay with a new upper dir `place`/upper, mounted while the block runs; yields the merged dir.

    The upper dir's own metadata hides that of every lower root: it is the newest one's, to be seen.
    """
    place.mkdir()
    for name in ("upper", "work", "merged"):
        (place / name).mkdir()
    copy_metadata(lowers[0], place / "upper", shift=0)
    stack = ":".join(str(lower) for lower in lowers)
    options = f"lowerdir={stack},upperdir={place}/upper,workdir={place}/work,{OVERLAY_OPTIONS}"
    _check(_libc.mount(b"overlay", os.fsencode(place / "merged"), b"overlay", 0, os.fsencode(options)), options)
    try:
        yield place / "merged"
    finally:
        unmount(place / "merged")


def capture(upper: Path, target: Path, *, shift: int = 0) -> None:
    """A captured upper dir at `target`."""
    place = target.with_name(f"{target.name}.capture")
    made = Capture(upper, place, shift=shift)
    made.settle()
    made.tree.rename(target)
    place.rmdir()


class History:
    """An image and the layers above it, each made by changing a real overlay and capturing its upper dir."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.image = root / "image"
        self.image.mkdir()
        self.layers: list[Path] = []
        """Newest first."""
        self._count = 0

    def _place(self, kind: str) -> Path:
        self._count += 1
        return self.root / f"{kind}{self._count}"

    def add(self, change: str | Callable[[Path], None]) -> Path:
        """Run a shell script or a function in an overlay on the newest state; the layer that it made."""
        place = self._place("run")
        with overlay([*self.layers, self.image], place) as merged:
            if isinstance(change, str):
                subprocess.run(["sh", "-euc", change], cwd=merged, check=True)
            else:
                change(merged)
        layer = self._place("layer")
        capture(place / "upper", layer)
        shutil.rmtree(place)
        self.layers.insert(0, layer)
        return layer

    def flatten(self) -> Path:
        flat = self._place("flat")
        flatten_trees(self.layers, flat)
        return flat

    @contextlib.contextmanager
    def mount(self, layers: Sequence[Path]) -> Iterator[Path]:
        place = self._place("view")
        with overlay([*layers, self.image], place) as merged:
            yield merged
        shutil.rmtree(place)

    def show(self, layers: Sequence[Path]) -> dict[str, tuple[object, ...]]:
        with self.mount(layers) as merged:
            return describe(merged)
