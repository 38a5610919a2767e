"""Capturing an upper dir: most of it while its programs run, and only what changed since while they stand still.

A capture looks twice. `prepare` copies everything from a live tree; `settle` runs in the frozen window and takes again
what differs. A file is unchanged if its inode, size, mtime and ctime are, with two exceptions. Stores through a shared
mapping may leave all four as they were, so a file that was mapped shared at either look is taken again. And a change
within one tick of the clock may not show, so a file changed just before the first look is, too.

What is unchanged since the runtime's previous capture is a hard link into that layer, never into the upper dir. The
memory of it is `runtimes/<id>/captured.json`, which lists inodes of this very upper dir.

The tree is live and its owner not trusted: it is walked from a descriptor, one component at a time, and no symbolic
link is ever followed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runta.kernel.mappings import UNKNOWN
from runta.kernel.process import boot_id
from runta.kernel.tree import (
    LINK_REMAP,
    copy_attributes,
    copy_data,
    copy_file,
    is_whiteout,
)

Stamp = tuple[int, int, int, int]
"""Inode, size, mtime and ctime (ns) of a file of the upper dir."""
FindMapped = Callable[[], set[int]]

_MODE_PRIVATE = 0o700
_MODE_FILE = 0o600
_TICK_NS = 20_000_000
"""Two changes closer than this may bear one time: kernels keep file times by the tick, 10 ms at most."""
_MANY_NAMES = 30_000
"""Half of what ext4 lets one file have; hard links to a layer must leave room for a whole group."""
_DEEPEST = 250
"""Each level takes two descriptors and three calls."""
_PREPARE_SECONDS = 300.0
_WHITEOUT: Stamp = (0, 0, 0, 0)
"""Of every whiteout: they are names of few inodes, whose change time moves with each new one."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNLINKABLE = frozenset({errno.EMLINK, errno.ENOENT, errno.EXDEV, errno.ENAMETOOLONG, errno.ENOTDIR})
"""Why a hard link can't be made and a copy is."""
_VANISHED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ESTALE})
"""What a live tree answers whose entry was replaced between two calls."""


class _OutOfTime(Exception):
    """The look at a live tree takes too long; the next one takes the rest."""


@dataclass(slots=True)
class _Directory:
    """A directory of the capture: its own stamp, and what was taken of each entry."""

    stamp: Stamp | None = None
    entries: dict[str, Stamp | _Directory] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Previous:
    """The runtime's previous capture: files of its layer by their inode in the upper dir."""

    tree: Path
    files: Mapping[int, tuple[Stamp, str]]


def read_previous(path: Path, tree_of: Callable[[str], Path]) -> Previous | None:
    """What `Capture.remember` wrote; None if there is nothing of use."""
    try:
        data = json.loads(path.read_text(errors="surrogateescape"))
    except (FileNotFoundError, ValueError):
        return None
    if data.get("boot") != boot_id():
        return None  # what was not written out when the host went down is torn in the layer, and looks unchanged here
    files = {stamp[0]: ((stamp[0], stamp[1], stamp[2], stamp[3]), name) for name, *stamp in data["files"]}
    return Previous(tree_of(data["layer"]), files)


class Capture:
    """One capture of an upper dir into `place`/tree, with plain ids. Raises OSError."""

    def __init__(
        self,
        upper: Path,
        place: Path,
        *,
        shift: int,
        previous: Previous | None = None,
        find_mapped: FindMapped = set,
    ) -> None:
        self._upper = upper
        self._place = place
        self._shift = shift
        self._previous = previous
        self._find_mapped = find_mapped
        self._root = _Directory()
        self._mapped: set[int] = set()
        self._horizon = 0
        """What changed at this time (ns) or later is not trusted."""
        self._live = False
        self._deadline = 0.0
        self._fresh: set[int] = set()
        """Inodes copied or linked by the present look."""
        self._copies: dict[int, tuple[Stamp, str]] = {}
        """Inode → its last copy in the tree, by a name of it."""
        self.files_taken = 0
        """Files that the last look copied or linked."""
        place.mkdir(mode=_MODE_PRIVATE)
        self.tree.mkdir()

    @property
    def tree(self) -> Path:
        return self._place / "tree"

    def prepare(self) -> None:
        """Copy what there is while programs run; for a while, as they may make files faster than this copies them."""
        self._live = True
        self._deadline = time.monotonic() + _PREPARE_SECONDS
        with contextlib.suppress(_OutOfTime):
            self._look()

    def settle(self) -> None:
        """Take again what differs; the programs stand still."""
        self._live = False
        self._look()

    def _look(self) -> None:
        began = time.time_ns()
        self._mapped |= self._find_mapped()
        self._fresh.clear()
        self.files_taken = 0
        source, target = os.open(self._upper, _DIRECTORY), os.open(self.tree, _DIRECTORY)
        try:
            self._take_directory(source, target, self._root, "")
        finally:
            os.close(source)
            os.close(target)
            self._horizon = began - _TICK_NS

    # ---- directories

    def _take_directory(self, source: int, target: int, seen: _Directory, prefix: str) -> None:
        info = os.fstat(source)
        self._take_entries(source, target, seen, prefix)
        stamp = _stamp_of(info)
        if seen.stamp != stamp or not self._is_trusted(info):
            copy_attributes(source, target, info, shift=self._shift, renew=True)
            seen.stamp = stamp
        else:
            os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))

    def _take_entries(self, source: int, target: int, seen: _Directory, prefix: str) -> None:
        gone = set(seen.entries)
        with os.scandir(source) as listing:
            entries = list(listing)  # read before any is entered: it holds a descriptor
        for entry in entries:
            if self._live and time.monotonic() > self._deadline:
                raise _OutOfTime
            try:
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    self._enter(source, target, entry.name, seen, prefix)
                else:
                    self._take(source, target, entry.name, info, seen, prefix)
            except OSError as err:
                if err.errno not in _VANISHED or not self._may_vanish(entry.name):
                    raise
            else:
                gone.discard(entry.name)
        for name in gone:
            self._drop(target, name, seen, prefix)

    def _may_vanish(self, name: str) -> bool:
        """Anything of a live tree; of a frozen one CRIU's link remaps, which come and go during a dump."""
        return self._live or name.startswith(LINK_REMAP)

    def _enter(self, source: int, target: int, name: str, seen: _Directory, prefix: str) -> None:
        if prefix.count("/") >= _DEEPEST:
            raise OSError(errno.ENAMETOOLONG, f"directories are nested deeper than {_DEEPEST}", prefix[:200])
        known = seen.entries.get(name)
        below = os.open(name, _DIRECTORY, dir_fd=source)
        try:
            if not isinstance(known, _Directory):
                self._drop(target, name, seen, prefix)
                os.mkdir(name, _MODE_PRIVATE, dir_fd=target)
                known = _Directory()
                seen.entries[name] = known
            copy = os.open(name, _DIRECTORY, dir_fd=target)
            try:
                self._take_directory(below, copy, known, f"{prefix}{name}/")
            finally:
                os.close(copy)
        finally:
            os.close(below)

    def _drop(self, target: int, name: str, seen: _Directory, prefix: str) -> None:
        """Remove a name from the tree; what was never there is no error."""
        known = seen.entries.pop(name, None)
        if isinstance(known, _Directory):
            self._forget(known, f"{prefix}{name}/")
            shutil.rmtree(name, dir_fd=target)
        elif known is not None:
            self._forget_copy(known, f"{prefix}{name}")
            os.unlink(name, dir_fd=target)

    def _forget(self, directory: _Directory, prefix: str) -> None:
        """What lies below a directory can't be linked to any more."""
        for name, known in directory.entries.items():
            if isinstance(known, _Directory):
                self._forget(known, f"{prefix}{name}/")
            else:
                self._forget_copy(known, f"{prefix}{name}")

    def _forget_copy(self, stamp: Stamp, name: str) -> None:
        taken = self._copies.get(stamp[0])
        if taken and taken[1] == name:
            del self._copies[stamp[0]]

    # ---- files

    def _take(self, source: int, target: int, name: str, info: os.stat_result, seen: _Directory, prefix: str) -> None:
        stamp = _WHITEOUT if is_whiteout(info) else _stamp_of(info)
        if seen.entries.get(name) == stamp and (stamp == _WHITEOUT or self._is_trusted(info)):
            return
        self._drop(target, name, seen, prefix)
        if not self._link(target, name, info, stamp):
            self._copy(source, target, name, info)
        self._copies[info.st_ino] = (stamp, f"{prefix}{name}")
        self._fresh.add(info.st_ino)
        self.files_taken += 1
        seen.entries[name] = stamp

    def _is_trusted(self, info: os.stat_result) -> bool:
        """Whether an equal stamp means an unchanged file."""
        return info.st_ctime_ns < self._horizon and not self._is_mapped(info)

    def _is_mapped(self, info: os.stat_result) -> bool:
        """Whether a file is mapped shared, or may be by a name of it that is gone."""
        if info.st_ino in self._mapped:
            return True
        return info.st_nlink > 1 and UNKNOWN in self._mapped and stat.S_ISREG(info.st_mode)

    def _link(self, target: int, name: str, info: os.stat_result, stamp: Stamp) -> bool:
        """Another name of a file taken already, or of an unchanged one of the previous capture."""
        twin = self._copies.get(info.st_ino)
        if stamp == _WHITEOUT:
            return twin is not None and self._is_whiteout(twin[1]) and _try_link(self.tree / twin[1], target, name)
        if twin and twin[0] == stamp and (info.st_ino in self._fresh or self._is_trusted(info)):
            return _try_link(self.tree / twin[1], target, name)
        previous = self._previous.files.get(info.st_ino) if self._previous else None
        if self._previous is None or previous is None or previous[0] != stamp or self._is_mapped(info):
            return False
        file = self._previous.tree / previous[1]
        if info.st_nlink > 1 and not _has_room(file, info.st_nlink):
            return False
        return _try_link(file, target, name)

    def _is_whiteout(self, name: str) -> bool:
        try:
            return is_whiteout((self.tree / name).lstat())
        except OSError:
            return False

    def _copy(self, source: int, target: int, name: str, info: os.stat_result) -> None:
        if stat.S_ISREG(info.st_mode):
            self._copy_file(source, target, name, info)
            return
        here, there = Path(f"/proc/self/fd/{source}", name), Path(f"/proc/self/fd/{target}", name)
        try:
            copy_file(here, there, info, shift=self._shift)
        except BaseException:
            there.unlink(missing_ok=True)
            raise

    def _copy_file(self, source: int, target: int, name: str, info: os.stat_result) -> None:
        reader = os.open(name, _READ, dir_fd=source)
        try:
            found = os.fstat(reader)
            if found.st_ino != info.st_ino:
                raise FileNotFoundError(errno.ENOENT, "replaced meanwhile", name)
            writer = os.open(name, _WRITE, _MODE_FILE, dir_fd=target)
            try:
                copy_data(reader, writer, found.st_size)
                copy_attributes(reader, writer, found, shift=self._shift)
            except BaseException:
                os.unlink(name, dir_fd=target)
                raise
            finally:
                os.close(writer)
        finally:
            os.close(reader)

    # ---- for what comes after

    def find_copy(self, inode: int) -> str | None:
        """A name in the tree of the copy of a file of the upper dir."""
        taken = self._copies.get(inode)
        return taken[1] if taken and os.path.lexists(self.tree / taken[1]) else None

    def add_copy(self, file: Path, name: str) -> None:
        """Tell of a file that was put into the tree by somebody else."""
        info = file.lstat()
        self._copies[info.st_ino] = (_stamp_of(info), name)

    def remember(self, path: Path, layer_id: str) -> None:
        """Write down, for the next capture, which files of the layer may be linked to."""
        files: list[tuple[str | int, ...]] = []
        _list_files(self._root, "", files)
        wanted = [entry for entry in files if self._may_be_linked(entry)]
        temporary = path.with_suffix(".new")
        text = json.dumps({"layer": layer_id, "boot": boot_id(), "files": wanted}, ensure_ascii=False)
        temporary.write_text(text, errors="surrogateescape")
        temporary.rename(path)

    def _may_be_linked(self, entry: tuple[str | int, ...]) -> bool:
        _, inode, _, _, ctime = entry
        if not inode or UNKNOWN in self._mapped:  # a whiteout, or it can't be told which file is mapped
            return False
        return int(ctime) < self._horizon and inode not in self._mapped


def _list_files(directory: _Directory, prefix: str, files: list[tuple[str | int, ...]]) -> None:
    for name, known in directory.entries.items():
        if isinstance(known, _Directory):
            _list_files(known, f"{prefix}{name}/", files)
        else:
            files.append((f"{prefix}{name}", *known))


def _stamp_of(info: os.stat_result) -> Stamp:
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _try_link(file: Path, target: int, name: str) -> bool:
    try:
        os.link(file, name, dst_dir_fd=target, follow_symlinks=False)
    except OSError as err:
        if err.errno in _UNLINKABLE:
            return False
        raise
    return True


def _has_room(file: Path, names: int) -> bool:
    try:
        return file.lstat().st_nlink + names < _MANY_NAMES
    except OSError:
        return False
