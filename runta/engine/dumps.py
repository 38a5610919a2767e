"""Where CRIU writes a dump while its runtime stands still, and how the dump comes home.

With `dump_dir`, a directory in memory (tmpfs), CRIU writes to `dump_dir`/<staging id>, and the staged checkpoint holds
a symbolic link to it; after the thaw the files move to the state directory. The link is what tells, after a crash,
which directories there are ours. Without it, CRIU writes to the staged checkpoint at once.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runta.kernel.sparse import copy_sparse, punch_zeros
from runta.store.staging import remove_tree

log = logging.getLogger("runta.engine")

_MODE_PRIVATE = 0o700
_PAGES = "pages-*.img"
_RESERVE = 64 << 20


@dataclass(frozen=True, slots=True)
class Dumps:
    """The dumps that are being made."""

    dump_dir: Path | None = None

    def prepare(self, staged: Path, wanted: int) -> Path:
        """Make an empty dump directory for a staged checkpoint; `wanted` is about how many bytes it will take."""
        dump = _dump_of(staged)
        if self.dump_dir is None or not _has_room(self.dump_dir, wanted):
            dump.mkdir(mode=_MODE_PRIVATE)
            return dump
        hot = self.dump_dir / staged.name
        dump.symlink_to(hot)
        remove_tree(hot)
        hot.mkdir(mode=_MODE_PRIVATE)
        return dump

    @contextlib.contextmanager
    def homing(self, staged: Path) -> Iterator[None]:
        """Whatever happens in the block, nothing of the staged checkpoint is left in `dump_dir` after it."""
        try:
            yield
        finally:
            if self.dump_dir is not None:
                _remove_hot(self.dump_dir / staged.name)

    def settle(self, staged: Path) -> None:
        """Bring a finished dump home, if it is not there, and give the room of its zero pages back.

        It is for the time after the thaw: it reads all memory in the dump.
        """
        dump = _dump_of(staged)
        if not dump.is_symlink():
            for pages in dump.rglob(_PAGES):
                punch_zeros(pages)
            return
        home = dump.with_name("home")
        _copy_tree(dump.readlink(), home)
        remove_tree(dump.readlink())
        dump.unlink()
        home.rename(dump)

    def sweep(self, staging: Path) -> None:
        """Remove what a crash left in `dump_dir`, also in one that was set then: where the staged links point to."""
        for link in staging.glob("*/checkpoint/dump"):
            if link.is_symlink() and link.readlink().name == link.parent.parent.name:
                _remove_hot(link.readlink())


def place_links(dump: Path, place: Path, runtime_id: str) -> Path:
    """Where hard links to a dump's files can be made for one restore: `place`, or beside a dump still in `dump_dir`."""
    if dump.stat().st_dev == place.parent.stat().st_dev:
        return place
    hot = dump.resolve()
    return hot.with_name(f"{hot.name}.{runtime_id}")


def _remove_hot(hot: Path) -> None:
    """A dump in `dump_dir`, with the links that were made to it."""
    for path in hot.parent.glob(f"{hot.name}*"):
        remove_tree(path)


def _dump_of(staged: Path) -> Path:
    return staged / "checkpoint" / "dump"


def _copy_tree(source: Path, target: Path) -> None:
    """A dump directory, over to another file system: files, directories, CRIU's link to a parent."""
    target.mkdir(mode=_MODE_PRIVATE)
    for path in source.iterdir():
        place = target / path.name
        if path.is_symlink():
            place.symlink_to(path.readlink())
        elif path.is_dir():
            _copy_tree(path, place)
        else:
            copy_sparse(path, place)


def _has_room(directory: Path, wanted: int) -> bool:
    """Whether the directory takes a dump of this size; if not, and that is told, the disk does."""
    try:
        free = shutil.disk_usage(directory).free
    except OSError as err:
        log.warning("%s can't be used for dumps: %s", directory, err)
        return False
    if free < wanted + _RESERVE:
        log.info("%s has no room for a dump of %d MiB", directory, wanted >> 20)
        return False
    return True
