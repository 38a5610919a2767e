"""CRIU's knowledge of the kernel, kept between its calls.

CRIU tries out what the kernel can do each time it starts, which takes tens of milliseconds, unless it finds what it
found before in `/run/criu.kdat`; and it writes that file only to a tmpfs, which forgets it with the boot (criu,
kerndat.c). Where `/run` is no tmpfs, CRIU is started by a wrapper that shows it one there: in a mount namespace of its
own, which ends with it. What else CRIU needs of `/run` is the service's run directory.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from runta.kernel.files import write_text
from runta.kernel.mounts import is_mounted, mount_tmpfs, unmount
from runta.kernel.probes import file_system_of

_RUN = Path("/run")
_SIZE = 1 << 20
_MODE_PROGRAM = 0o755


def provide_cache(criu: Path, run_dir: Path) -> Path:
    """The directory that comes first in PATH for whoever starts CRIU. Raises OSError."""
    if file_system_of(_RUN) == "tmpfs":
        return criu.parent
    shown, programs = run_dir / "criu-run", run_dir / "bin"
    for directory in (shown, programs):
        directory.mkdir(exist_ok=True)
    if not is_mounted(shown):
        mount_tmpfs(shown, size=_SIZE)
    below = shown / run_dir.relative_to(_RUN) if run_dir.is_relative_to(_RUN) else None
    if below is not None:
        below.mkdir(parents=True, exist_ok=True)
    write_text(programs / "criu", _compose_wrapper(criu, run_dir, shown, below), mode=_MODE_PROGRAM)
    return programs


def drop_cache(run_dir: Path) -> None:
    """Undo the mount of `provide_cache`, if it made one. Raises KernelError."""
    unmount(run_dir / "criu-run")


def _compose_wrapper(criu: Path, run_dir: Path, shown: Path, below: Path | None) -> str:
    keep = f"mount --rbind {shlex.quote(str(run_dir))} {shlex.quote(str(below))} && " if below else ""
    script = f'{keep}mount --rbind {shlex.quote(str(shown))} {_RUN} && exec {shlex.quote(str(criu))} "$@"'
    return f'#!/bin/sh\nexec unshare --mount --propagation private -- /bin/sh -c {shlex.quote(script)} criu "$@"\n'
