"""Incremental dumps: most of the memory is written before the runtime stands still, the rest while it does.

    dump/           the final dump: what was written to since the pre-dump, and everything that is not memory
    dump/parent     a symbolic link CRIU makes, to
    dump/pre/       the pre-dump: the memory as it was before

So a checkpoint holds all parts of its chain. It takes a kernel that tells which pages were written
(CONFIG_MEM_SOFT_DIRTY): CRIU's own probe says whether this one does. Where it does not, nothing is attempted, and
every dump is a full one.

Sources: criu(8), pre-dump and --prev-images-dir; criu/image.c, open_parent; runc-checkpoint(8).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runta.errors import KernelError
from runta.kernel.criu_rpc import ask_features
from runta.store.staging import remove_tree

log = logging.getLogger("runta.engine")

PRE = "pre"
_MODE_PRIVATE = 0o700


class PreDumper(Protocol):
    """The one verb of runc that is needed here."""

    def pre_dump(self, runtime_id: str, *, dump: Path, work: Path, log: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class Ahead:
    """Whether memory is dumped ahead of the freeze."""

    tracking: bool = False
    """The kernel tells which pages were written."""

    def dump(self, runc: PreDumper, runtime_id: str, *, dump: Path, work: Path, log_file: Path) -> str | None:
        """Dump the memory of a running runtime into `dump`/pre; the parent of the final dump, relative to `dump`.

        None where the kernel can't track, or the pre-dump fails: then the final dump is a full one.
        """
        if not self.tracking:
            return None
        pre, logs = dump / PRE, work / PRE
        for directory in (pre, logs):
            directory.mkdir(mode=_MODE_PRIVATE)
        try:
            runc.pre_dump(runtime_id, dump=pre, work=logs, log=log_file)
        except KernelError as err:
            log.warning("runtime %s: no pre-dump, a full dump follows: %s", runtime_id, err.cause or err)
            remove_tree(pre)
            return None
        return PRE


def find_tracking(criu: Path) -> Ahead:
    """What CRIU's probe says of this kernel; a CRIU that does not answer means no."""
    try:
        return Ahead(tracking=ask_features(criu).dirty_tracking)
    except KernelError as err:
        log.warning("incremental dumps are off: %s", err)
        return Ahead()
