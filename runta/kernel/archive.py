"""Packing trees with GNU tar and zstd."""

from __future__ import annotations

import os
from pathlib import Path

from runta.kernel.process import run

_TIMEOUT = 3600.0


def pack_tree(tree: Path, target: Path) -> None:
    """Write a directory tree as a compressed tar: whiteouts, xattrs, ACLs, hard links, holes, nanosecond times.

    Unpack it with `tar --xattrs --xattrs-include='*' --acls --numeric-owner -xpf`. Raises KernelError.
    """
    keep = ("--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--sparse", "--sort=name")
    threads = min(4, os.cpu_count() or 1)
    run(("tar", "-C", tree, *keep, "-I", f"zstd -q -3 -T{threads}", "-cf", target, "."), timeout=_TIMEOUT)
